//! A request: JSON to a turn for the engine, or the error that it is answered with.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::audio::intake::Format;
use crate::audio::{RATE, file};
use crate::config::{Config, Effort};
use crate::engine::{self, Content, Item, Role, SessionId, Tenant, Thinking};
use crate::protocol::openai::{ErrorBody, Refusal, ToolChoice, decode_base64, tools_json};

/// As many as the API takes.
const MOST_STOPS: usize = 4;

/// A request that can be obeyed as far as its form goes; its sound is not decoded yet.
#[derive(Debug)]
pub struct Chat {
    wire: Wire,
}

#[derive(Debug, Deserialize)]
struct Wire {
    messages: Vec<MessageWire>,
    #[serde(default, deserialize_with = "or_default")]
    stream: bool,
    #[serde(default, deserialize_with = "or_default")]
    stream_options: StreamOptions,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    #[serde(default, deserialize_with = "one_or_many")]
    stop: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    tools: Vec<ToolWire>,
    #[serde(default, deserialize_with = "or_default")]
    tool_choice: ToolChoice,
    reasoning_effort: Option<Effort>,
    n: Option<u32>,
    logprobs: Option<bool>,
    response_format: Option<KindWire>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
struct KindWire {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct ToolWire {
    function: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct MessageWire {
    role: String,
    content: Option<ContentWire>,
    #[serde(default, deserialize_with = "or_default")]
    tool_calls: Vec<CallWire>,
    tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ContentWire {
    Text(String),
    Parts(Vec<PartWire>),
}

#[derive(Debug, Deserialize)]
struct PartWire {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
    input_audio: Option<AudioWire>,
}

#[derive(Debug, Deserialize)]
struct AudioWire {
    data: String,
    format: String,
}

#[derive(Debug, Deserialize)]
struct CallWire {
    id: String,
    function: FunctionWire,
}

#[derive(Debug, Deserialize)]
struct FunctionWire {
    name: String,
    arguments: String,
}

/// `null` is as good as absence.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stop {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Stop>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Many(many)) => many,
    })
}

fn bad(param: impl Into<String>, message: impl Into<String>) -> Refusal {
    ErrorBody::invalid("invalid_value", message).at(param)
}

impl Chat {
    /// Reads a request's body.
    ///
    /// # Errors
    /// What the client is to be told.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let wire: Wire = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let path = e.path().to_string();
            let inner = e.into_inner();
            if inner.is_data() {
                bad(path, inner.to_string())
            } else {
                ErrorBody::invalid("invalid_json", format!("This is not JSON: {inner}"))
            }
        })?;
        wire.check()?;
        Ok(Self { wire })
    }

    /// Whether its answer comes in chunks.
    pub fn is_streamed(&self) -> bool {
        self.wire.stream
    }

    /// Whether a last chunk tells the usage.
    pub fn includes_usage(&self) -> bool {
        self.wire.stream_options.include_usage
    }

    /// Where the reply is to end.
    pub fn stops(&self) -> Vec<String> {
        self.wire.stop.clone()
    }

    /// The turn that answers it. Decodes all of its sound, which takes a while.
    ///
    /// # Errors
    /// What the client is to be told.
    pub fn into_turn(self, session: SessionId, tenant: Tenant, config: &Config) -> Result<engine::Request, Refusal> {
        let wire = self.wire;
        let thinking = &config.thinking;
        let mut budget = thinking.budget(wire.reasoning_effort.unwrap_or(thinking.effort));
        let mut most = wire.max_tokens.unwrap_or(usize::MAX);
        if let Some(both) = wire.max_completion_tokens {
            budget = budget.map(|budget| budget.min(both / 2));
            most = most.min(both - budget.unwrap_or(0));
        }
        let mut sampling = config.sampling.for_turn(session.0);
        sampling.temperature = wire.temperature.unwrap_or(sampling.temperature);
        sampling.top_p = wire.top_p.unwrap_or(sampling.top_p);
        sampling.seed = wire.seed.map_or(sampling.seed, i64::cast_unsigned);
        Ok(engine::Request {
            session,
            tenant,
            conversation: conversation(&wire.messages, config)?,
            tools: tools(&wire.tools, &wire.tool_choice),
            calling: wire.tool_choice.calling(),
            thinking: if budget.is_some() { Thinking::On } else { Thinking::Off },
            thinking_budget: budget.unwrap_or(0),
            pace: thinking.pace,
            max_reply_tokens: most.min(thinking.max_reply_tokens),
            sampling,
            words: false,
            ending: engine::Ending::Known,
        })
    }
}

impl Wire {
    fn check(&self) -> Result<(), Refusal> {
        if self.messages.is_empty() {
            return Err(bad("messages", "There is nothing to answer."));
        }
        if self.n.is_some_and(|n| n != 1) {
            return Err(bad("n", "One answer is given to a request."));
        }
        if self.logprobs == Some(true) {
            return Err(bad("logprobs", "Probabilities are not told here."));
        }
        if self.response_format.as_ref().is_some_and(|format| format.kind != "text") {
            return Err(bad("response_format", "Replies are free text."));
        }
        if self.stop.len() > MOST_STOPS {
            return Err(bad("stop", format!("At most {MOST_STOPS} stop sequences are taken.")));
        }
        if self.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            return Err(bad("temperature", "A temperature is between 0 and 2."));
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return Err(bad("top_p", "top_p is above 0 and at most 1."));
        }
        for (param, limit) in [("max_tokens", self.max_tokens), ("max_completion_tokens", self.max_completion_tokens)] {
            if limit == Some(0) {
                return Err(bad(param, "At least one token is written."));
            }
        }
        Ok(())
    }
}

/// In the shape that sessions give them: a function's fields beside its type. A choice of one function hides the others.
fn tools(tools: &[ToolWire], choice: &ToolChoice) -> String {
    let hidden = |tool: &&ToolWire| matches!(choice, ToolChoice::Function(name) if tool.function.get("name") != Some(&json!(name)));
    let wanted = tools.iter().filter(|tool| !hidden(tool));
    let flat = wanted.map(|tool| {
        let mut flat = Map::from_iter([("type".to_owned(), json!("function"))]);
        flat.extend(tool.function.clone());
        Value::Object(flat)
    });
    tools_json(&flat.collect::<Vec<_>>(), choice)
}

fn conversation(messages: &[MessageWire], config: &Config) -> Result<Vec<Item>, Refusal> {
    let limits = &config.limits;
    if messages.len() > limits.conversation_items {
        return Err(bad("messages", format!("A conversation has at most {} messages.", limits.conversation_items)));
    }
    let instructions = &config.thinking.instructions;
    let mut items = Vec::new();
    if !instructions.is_empty() && !messages.iter().any(|m| matches!(&m.role[..], "system" | "developer")) {
        let content = vec![Content::Text(instructions.clone())];
        items.push(Item::Message { role: Role::System, content });
    }
    let mut room = Room { bytes: limits.conversation_bytes, seconds: limits.conversation_seconds };
    for (i, message) in messages.iter().enumerate() {
        let at = format!("messages[{i}]");
        let mut content = message.content(&at, &mut room)?;
        let role = match &message.role[..] {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => {
                let id = message.tool_call_id.as_deref().ok_or_else(|| {
                    ErrorBody::invalid("missing_required_parameter", "A tool's message names its call.")
                        .at(format!("{at}.tool_call_id"))
                })?;
                let output =
                    content.iter().filter_map(|c| if let Content::Text(text) = c { Some(&text[..]) } else { None });
                items.push(Item::ToolResult { name: called(&messages[..i], id), output: output.collect() });
                continue;
            }
            _ => return Err(bad(format!("{at}.role"), "A role is system, developer, user, assistant or tool.")),
        };
        content.retain(|part| !matches!(part, Content::Text(text) if text.is_empty()));
        if !content.is_empty() {
            items.push(Item::Message { role, content });
        }
        for (n, CallWire { function, .. }) in message.tool_calls.iter().enumerate() {
            room.text(function.name.len() + function.arguments.len(), &format!("{at}.tool_calls[{n}]"))?;
            items.push(Item::ToolCall { name: function.name.clone(), arguments: function.arguments.clone() });
        }
    }
    if items.is_empty() {
        return Err(bad("messages", "There is nothing to answer."));
    }
    Ok(items)
}

/// The function that a call names; the call's own name when nobody called it.
fn called(before: &[MessageWire], id: &str) -> String {
    let call = before.iter().flat_map(|message| &message.tool_calls).find(|call| call.id == id);
    call.map_or_else(|| id.to_owned(), |call| call.function.name.clone())
}

/// What a conversation may still hold.
struct Room {
    bytes: usize,
    seconds: f32,
}

impl Room {
    fn text(&mut self, bytes: usize, at: &str) -> Result<(), Refusal> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.ok_or_else(|| {
            ErrorBody::invalid("context_length_exceeded", "The conversation has more text than is taken.").at(at)
        })?;
        Ok(())
    }

    fn sound(&mut self, audio: &AudioWire, at: &str) -> Result<Vec<f32>, Refusal> {
        let bytes = decode_base64(&audio.data, &format!("{at}.data"))?;
        let unheard = |error: &dyn std::fmt::Display| ErrorBody::invalid("invalid_audio", error.to_string()).at(at);
        let sound = if audio.format == "pcm16" {
            Format::Pcm16(24_000).clip(&bytes).map_err(|e| unheard(&e))?
        } else {
            file::read_bytes(bytes, self.seconds).map_err(|e| unheard(&e))?
        };
        self.seconds -= sound.len() as f32 / RATE as f32;
        if self.seconds < 0.0 {
            return Err(unheard(&"The conversation has more sound than is taken."));
        }
        Ok(sound)
    }
}

impl MessageWire {
    fn content(&self, at: &str, room: &mut Room) -> Result<Vec<Content>, Refusal> {
        let parts = match &self.content {
            None => return Ok(Vec::new()),
            Some(ContentWire::Text(text)) => {
                room.text(text.len(), &format!("{at}.content"))?;
                return Ok(vec![Content::Text(text.clone())]);
            }
            Some(ContentWire::Parts(parts)) => parts,
        };
        let mut content = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let at = format!("{at}.content[{n}]");
            match (&part.kind[..], &part.text, &part.refusal, &part.input_audio) {
                ("text", Some(text), ..) | ("refusal", _, Some(text), _) => {
                    room.text(text.len(), &at)?;
                    // Models know an instruction on a line of its own behind the sound.
                    let after_sound = matches!(content.last(), Some(Content::Sound(_)));
                    let line = if after_sound && !text.starts_with('\n') { "\n" } else { "" };
                    content.push(Content::Text(format!("{line}{text}")));
                }
                ("input_audio", .., Some(audio)) if self.role == "user" => {
                    let sound = room.sound(audio, &format!("{at}.input_audio"))?;
                    content.push(Content::Sound(sound.into()));
                }
                _ => {
                    let message = "A part is text, or in a user's message input_audio with data and format.";
                    return Err(bad(at, message));
                }
            }
        }
        Ok(content)
    }
}
