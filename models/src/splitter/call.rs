//! A call, told while it is written: its name is known before its arguments begin, in both of the forms that models write.
//!
//! ```text
//! function\nNAME\n{json}                        Step-Audio; without its first line too
//! {"name": "NAME", "arguments": {json}}         Qwen
//! ```
//! What is of neither form is read when it is whole.

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value};

use super::Part;

/// A call that is being written.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// What stands before the arguments, as far as it is not understood.
    opening: String,
    begun: Option<Begun>,
}

/// A call whose name is known.
#[derive(Debug)]
struct Begun {
    name: String,
    arguments: String,
    /// Where the arguments are an object inside another one: where in it the text is.
    object: Option<Object>,
}

impl Call {
    /// Takes more of it, which is certain not to be its end mark nor the white space before that; tells what is new of the arguments.
    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        if let Some(begun) = &mut self.begun {
            return begun.push(text, out);
        }
        self.opening.push_str(text);
        if let Some((name, arguments, object)) = inside(&self.opening).or_else(|| bare(&self.opening)) {
            self.begun.insert(Begun { name, arguments: String::new(), object }).push(arguments, out);
        }
    }

    /// The call, when its end mark has come.
    pub(super) fn end(self) -> Part {
        match self.begun {
            Some(begun) => begun.end(),
            None => whole(&self.opening).unwrap_or_else(|| {
                let text = self.opening.trim();
                Part::ToolCall {
                    name: text.strip_prefix("function\n").unwrap_or(text).trim().into(),
                    arguments: "{}".into(),
                }
            }),
        }
    }

    /// What it comes to when the stream ends before its end mark: a call, if nothing else is missing; otherwise nothing more, or if nothing was told of
    /// it, its text.
    pub(super) fn cut(self) -> Result<Option<Part>, String> {
        match self.begun {
            Some(begun) => Ok(serde_json::from_str::<IgnoredAny>(&begun.arguments).is_ok().then(|| begun.end())),
            None => whole(&self.opening).map(Some).ok_or(self.opening),
        }
    }
}

impl Begun {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        let text = if self.arguments.is_empty() { text.trim_start() } else { text };
        let delta = self.object.as_mut().map_or(text, |object| object.take(text));
        if !delta.is_empty() {
            self.arguments.push_str(delta);
            out.push(Part::CallDelta { name: self.name.clone(), delta: delta.into() });
        }
    }

    fn end(self) -> Part {
        let arguments = if self.arguments.is_empty() { "{}".into() } else { self.arguments };
        Part::ToolCall { name: self.name, arguments }
    }
}

/// A place in the text of a JSON object.
#[derive(Debug, Default)]
struct Object {
    /// Brackets that are open.
    depth: usize,
    is_string: bool,
    is_escaped: bool,
    is_over: bool,
}

impl Object {
    /// What of the text that follows belongs to it.
    fn take<'a>(&mut self, text: &'a str) -> &'a str {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.is_over => return &text[..at],
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_string => self.is_escaped = true,
                b'"' => self.is_string = !self.is_string,
                _ if self.is_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.is_over = self.depth == 0;
                }
                _ => {}
            }
        }
        text
    }
}

/// Reads `{"name": "NAME", "arguments": ` as far as the object behind it.
fn inside(text: &str) -> Option<(String, &str, Option<Object>)> {
    fn behind<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
        text.trim_start().strip_prefix(mark).map(str::trim_start)
    }
    let name = behind(behind(behind(text, "{")?, "\"name\"")?, ":")?;
    let mut texts = Deserializer::from_str(name).into_iter::<String>();
    let said = texts.next()?.ok()?;
    let arguments = behind(behind(behind(&name[texts.byte_offset()..], ",")?, "\"arguments\"")?, ":")?;
    arguments.starts_with('{').then(|| (said, arguments, Some(Object::default())))
}

/// Reads `function\nNAME\n`, or the name alone.
fn bare(text: &str) -> Option<(String, &str, Option<Object>)> {
    let text = text.trim_start();
    let (name, behind) = text.strip_prefix("function\n").unwrap_or(text).split_once('\n')?;
    (!text.starts_with('{')).then(|| (name.trim().into(), behind, None))
}

/// Reads all of a call that is an object, whatever the order of its fields.
fn whole(text: &str) -> Option<Part> {
    let call: Value = serde_json::from_str(text).ok()?;
    let arguments = call.get("arguments").map_or("{}".into(), Value::to_string);
    Some(Part::ToolCall { name: call["name"].as_str()?.into(), arguments })
}
