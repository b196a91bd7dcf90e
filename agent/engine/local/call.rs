//! A function's call, held to its form while it is drawn: the opening is forced, the name is one of the names, the arguments are of its schema.
//!
//! A small model that knows what to call seldom writes it without a slip. What is drawn here is always the likeliest token of those that fit.

use hearken_models::checkpoint::Checkpoint;
use hearken_models::{Error, Result};
use serde_json::Value;

use super::schema::{Fit, fit};
use crate::engine::Calling;

/// Tokens looked at before all of the vocabulary is.
const FIRST: usize = 256;

/// One function.
#[derive(Debug)]
struct Function {
    name: String,
    parameters: Value,
}

/// A call being written.
#[derive(Debug)]
pub(super) struct Call {
    functions: Vec<Function>,
    /// What is written of the name and what stands behind it.
    name: String,
    /// Which function, once that is decided.
    chosen: Option<usize>,
    arguments: String,
}

/// What follows from a token.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The token to put in, if it was drawn and not forced.
    pub(super) token: Option<u32>,
    /// Text to force behind it.
    pub(super) forced: String,
    /// What is new of the arguments.
    pub(super) arguments: String,
    /// The call is complete.
    pub(super) is_over: bool,
}

impl Call {
    /// A call of one of these functions (a JSON array), or of the one that must be called. `None` when there is none to call.
    pub(super) fn new(tools: &str, calling: &Calling) -> Option<Self> {
        let tools: Vec<Value> = serde_json::from_str(tools).ok()?;
        let function = |tool: &Value| {
            let name = tool["name"].as_str()?.to_owned();
            let parameters = tool.get("parameters").filter(|p| p.is_object()).cloned();
            Some(Function { name, parameters: parameters.unwrap_or_else(|| serde_json::json!({"type": "object"})) })
        };
        let mut functions: Vec<Function> = tools.iter().filter_map(function).collect();
        if let Calling::This(name) = calling {
            functions.retain(|function| function.name == *name);
        }
        if functions.is_empty() {
            return None;
        }
        Some(Self { functions, name: String::new(), chosen: None, arguments: String::new() })
    }

    /// The function's name, once it is decided.
    pub(super) fn name(&self) -> Option<&str> {
        self.chosen.map(|chosen| &self.functions[chosen].name[..])
    }

    /// All of the arguments so far, JSON when the call is over.
    pub(super) fn arguments(&self) -> &str {
        &self.arguments
    }

    /// What is written before any token is drawn.
    pub(super) fn open(&mut self, model: &Checkpoint) -> Written {
        let [opening, ..] = model.format.call();
        Written { forced: format!("{opening}{}", self.decided(model)), ..Written::default() }
    }

    /// Draws the next token.
    pub(super) fn draw(&mut self, model: &Checkpoint, logits: &[f32]) -> Result<Written> {
        let [_, between, end] = model.format.call();
        let Some(chosen) = self.chosen else {
            let all: Vec<String> = self.functions.iter().map(|f| format!("{}{between}", f.name)).collect();
            let goes_on = |text: &str| {
                let next = format!("{}{text}", self.name);
                all.iter().any(|one| one.starts_with(&next))
            };
            let (token, text) = likeliest(model, logits, goes_on)?;
            self.name.push_str(&text);
            return Ok(Written { token: Some(token), forced: self.decided(model), ..Written::default() });
        };
        let schema = &self.functions[chosen].parameters;
        // The token that closes the arguments may close more than them: "}}" is one.
        let goes_on = |text: &str| match fit(schema, &format!("{}{text}", self.arguments)) {
            Fit::Open => true,
            Fit::Whole(rest) => end.starts_with(rest),
            Fit::Not => false,
        };
        let (token, mut text) = likeliest(model, logits, goes_on)?;
        let all = format!("{}{text}", self.arguments);
        let (forced, is_over) = match fit(schema, &all) {
            Fit::Whole(rest) => {
                text.truncate(text.len() - rest.len());
                (end[rest.len()..].to_owned(), true)
            }
            _ => (String::new(), false),
        };
        self.arguments.push_str(&text);
        Ok(Written { token: Some(token), forced, arguments: text, is_over })
    }

    /// What is left of the name and what stands behind it, when only one function goes on like this.
    fn decided(&mut self, model: &Checkpoint) -> String {
        let [_, between, _] = model.format.call();
        let whole = |function: &Function| format!("{}{between}", function.name);
        let mut fitting = self.functions.iter().enumerate().filter(|(_, f)| whole(f).starts_with(&self.name));
        let (Some((chosen, function)), None) = (fitting.next(), fitting.next()) else { return String::new() };
        let rest = whole(function)[self.name.len()..].to_owned();
        self.chosen = Some(chosen);
        rest
    }
}

/// The likeliest token whose text fits, and its text.
fn likeliest(model: &Checkpoint, logits: &[f32], fits: impl Fn(&str) -> bool) -> Result<(u32, String)> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]);
    let first = FIRST.min(order.len().saturating_sub(1));
    order.select_nth_unstable_by(first, better);
    order[..first].sort_unstable_by(better);
    let mut is_sorted = false;
    for at in 0..order.len() {
        if at == first && !is_sorted {
            order[first..].sort_unstable_by(better);
            is_sorted = true;
        }
        let text = model.tokenizer.piece(order[at])?;
        // A character in two tokens is not pieced together here.
        if !text.is_empty() && !text.contains('\u{fffd}') && fits(&text) {
            return Ok((order[at], text));
        }
    }
    Err(Error::Input("no token goes on with this call".into()))
}
