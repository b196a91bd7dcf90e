//! Events from the client: JSON text to types, or to the error that it is answered with.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::settings::{MaxTokens, Reasoning};
use super::tools::check_tools;
use super::{ErrorBody, Refusal, SessionUpdate, ToolChoice};
use crate::config::Effort;

/// Padding is often forgotten and never needed.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One event with the name that its client gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// Echoed in errors about it.
    pub event_id: Option<String>,
    /// The event.
    pub event: ClientEvent,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientEvent {
    /// `session.update`
    SessionUpdate(Box<SessionUpdate>),
    /// `input_audio_buffer.append`: bytes in the session's input format.
    Append(Vec<u8>),
    /// `input_audio_buffer.commit`
    Commit,
    /// `input_audio_buffer.clear`
    Clear,
    /// `conversation.item.create`
    ItemCreate {
        /// After which item; `root` is before all, absent is after all.
        previous_item_id: Option<String>,
        /// The item.
        item: Box<NewItem>,
    },
    /// `conversation.item.retrieve`
    ItemRetrieve(String),
    /// `conversation.item.truncate`
    ItemTruncate {
        /// Which item.
        item_id: String,
        /// Which part.
        content_index: usize,
        /// How much was heard of it.
        audio_end_ms: u64,
    },
    /// `conversation.item.delete`
    ItemDelete(String),
    /// `response.create`
    ResponseCreate(Box<ResponseParams>),
    /// `response.cancel`, of this response or of whichever runs.
    ResponseCancel(Option<String>),
    /// `output_audio_buffer.clear`: there is no output sound, so it is empty already.
    OutputClear,
}

/// An item as a client writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct NewItem {
    /// The client's own name for it.
    pub id: Option<String>,
    /// What it is.
    pub kind: NewKind,
}

/// The kinds of item that a client may write.
#[derive(Debug, Clone, PartialEq)]
pub enum NewKind {
    /// Somebody says something.
    Message(crate::engine::Role, Vec<NewPart>),
    /// The model's call, when a conversation is restored.
    Call {
        /// Joins it with its output.
        call_id: String,
        /// The function.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// What the function gave.
    Output {
        /// Which call.
        call_id: String,
        /// Any text.
        output: String,
    },
}

/// One part of a new message.
#[derive(Debug, Clone, PartialEq)]
pub enum NewPart {
    /// `input_text`, `output_text`, `text`, or the transcript of spoken output.
    Text(String),
    /// `input_audio`: bytes in the session's input format.
    Audio {
        /// The sound.
        bytes: Vec<u8>,
        /// Its words, if the client knows them.
        transcript: Option<String>,
    },
}

/// What `response.create` may say; each overrides the session for one response.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResponseParams {
    /// Instead of the session's instructions.
    pub instructions: Option<String>,
    /// Instead of the session's tools.
    pub tools: Option<Vec<Value>>,
    /// Instead of the session's choice.
    pub tool_choice: Option<ToolChoice>,
    /// Instead of the session's limit.
    pub max_output_tokens: Option<MaxTokens>,
    /// Instead of the session's effort.
    pub effort: Option<Effort>,
    /// Echoed in the response.
    pub metadata: Option<Map<String, Value>>,
    /// Answers these items instead of the conversation.
    pub input: Option<Vec<InputItem>>,
    /// `conversation: "none"`: what it writes stays out of the conversation.
    pub out_of_band: bool,
}

/// An item of `response.create`'s own input.
#[derive(Debug, Clone, PartialEq)]
pub enum InputItem {
    /// Written out.
    New(NewItem),
    /// One of the conversation's items, by name.
    Reference(String),
}

/// Reads one text frame.
///
/// # Errors
/// The error object to answer with; it names the parameter and echoes the event's own id where there is one.
pub fn parse(text: &str) -> Result<Incoming, Refusal> {
    let value: Value =
        serde_json::from_str(text).map_err(|e| ErrorBody::invalid("invalid_json", format!("This is not JSON: {e}")))?;
    let event_id = value.get("event_id").and_then(Value::as_str).map(str::to_owned);
    match event(value) {
        Ok(event) => Ok(Incoming { event_id, event }),
        Err(mut refusal) => {
            refusal.event_id = event_id;
            Err(refusal)
        }
    }
}

fn event(value: Value) -> Result<ClientEvent, Refusal> {
    let Some(kind) = value.get("type").and_then(Value::as_str).map(str::to_owned) else {
        return Err(ErrorBody::invalid("missing_required_parameter", "An event is an object with a `type`.").at("type"));
    };
    Ok(match kind.as_str() {
        "session.update" => {
            let wire: UpdateWire = typed(value)?;
            wire.session.check()?;
            ClientEvent::SessionUpdate(Box::new(wire.session))
        }
        "input_audio_buffer.append" => ClientEvent::Append(decode(&typed::<AppendWire>(value)?.audio, "audio")?),
        "input_audio_buffer.commit" => ClientEvent::Commit,
        "input_audio_buffer.clear" => ClientEvent::Clear,
        "conversation.item.create" => {
            let wire: CreateWire = typed(value)?;
            let item = Box::new(wire.item.item("item")?);
            ClientEvent::ItemCreate { previous_item_id: wire.previous_item_id, item }
        }
        "conversation.item.retrieve" => ClientEvent::ItemRetrieve(typed::<NameWire>(value)?.item_id),
        "conversation.item.delete" => ClientEvent::ItemDelete(typed::<NameWire>(value)?.item_id),
        "conversation.item.truncate" => {
            let TruncateWire { item_id, content_index, audio_end_ms } = typed(value)?;
            ClientEvent::ItemTruncate { item_id, content_index, audio_end_ms }
        }
        "response.create" => ClientEvent::ResponseCreate(Box::new(typed::<ResponseWire>(value)?.params()?)),
        "response.cancel" => ClientEvent::ResponseCancel(typed::<CancelWire>(value)?.response_id),
        "output_audio_buffer.clear" => ClientEvent::OutputClear,
        unknown => {
            // The name comes from outside: do not echo a megabyte of it.
            let shown: String = unknown.chars().take(64).collect();
            return Err(ErrorBody::invalid("invalid_value", format!("There is no client event `{shown}`.")).at("type"));
        }
    })
}

/// Reads a session's settings as `session.update` has them, from elsewhere: a client secret's, a call's.
///
/// # Errors
/// As [`parse`].
pub fn parse_session(value: Value) -> Result<SessionUpdate, Refusal> {
    let update: SessionUpdate = typed(value)?;
    update.check()?;
    Ok(update)
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        ErrorBody::invalid("invalid_value", e.into_inner().to_string()).at(path)
    })
}

/// Bytes from base64 text; padding is optional.
///
/// # Errors
/// It is none; the refusal names `param`.
pub(crate) fn decode(text: &str, param: &str) -> Result<Vec<u8>, Refusal> {
    BASE64.decode(text).map_err(|e| ErrorBody::invalid("invalid_value", format!("This is not base64: {e}")).at(param))
}

#[derive(Deserialize)]
struct UpdateWire {
    session: SessionUpdate,
}

#[derive(Deserialize)]
struct AppendWire {
    audio: String,
}

#[derive(Deserialize)]
struct NameWire {
    item_id: String,
}

#[derive(Deserialize)]
struct TruncateWire {
    item_id: String,
    content_index: usize,
    audio_end_ms: u64,
}

#[derive(Deserialize)]
struct CancelWire {
    response_id: Option<String>,
}

#[derive(Deserialize)]
struct CreateWire {
    previous_item_id: Option<String>,
    item: ItemWire,
}

#[derive(Deserialize)]
struct ItemWire {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    role: Option<crate::engine::Role>,
    content: Option<Vec<PartWire>>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<String>,
}

#[derive(Deserialize)]
struct PartWire {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    audio: Option<String>,
    transcript: Option<String>,
}

impl ItemWire {
    fn item(self, at: &str) -> Result<NewItem, Refusal> {
        let missing = |field: &str| {
            ErrorBody::invalid("missing_required_parameter", format!("`{field}` is missing."))
                .at(format!("{at}.{field}"))
        };
        if self.id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 64) {
            return Err(ErrorBody::invalid("invalid_value", "An id has 1 to 64 bytes.").at(format!("{at}.id")));
        }
        let kind = match self.kind.as_str() {
            "message" => {
                let role = self.role.ok_or_else(|| missing("role"))?;
                let parts = self.content.ok_or_else(|| missing("content"))?.into_iter().enumerate();
                let parts = parts.map(|(i, p)| p.part(&format!("{at}.content[{i}]"))).collect::<Result<_, _>>()?;
                NewKind::Message(role, parts)
            }
            "function_call" => NewKind::Call {
                call_id: self.call_id.ok_or_else(|| missing("call_id"))?,
                name: self.name.ok_or_else(|| missing("name"))?,
                arguments: self.arguments.ok_or_else(|| missing("arguments"))?,
            },
            "function_call_output" => NewKind::Output {
                call_id: self.call_id.ok_or_else(|| missing("call_id"))?,
                output: self.output.ok_or_else(|| missing("output"))?,
            },
            _ => {
                let message = "An item is a message, a function_call or a function_call_output.";
                return Err(ErrorBody::invalid("invalid_value", message).at(format!("{at}.type")));
            }
        };
        Ok(NewItem { id: self.id, kind })
    }
}

impl PartWire {
    fn part(self, at: &str) -> Result<NewPart, Refusal> {
        match (self.kind.as_str(), self.text, self.audio, self.transcript) {
            ("input_text" | "output_text" | "text", Some(text), ..) => Ok(NewPart::Text(text)),
            ("input_audio", _, Some(audio), transcript) => {
                Ok(NewPart::Audio { bytes: decode(&audio, &format!("{at}.audio"))?, transcript })
            }
            // A conversation restored by a client that kept words alone.
            ("input_audio" | "output_audio" | "audio", _, _, Some(transcript)) => Ok(NewPart::Text(transcript)),
            _ => {
                let message = "A part is input_text or output_text with `text`, or input_audio with `audio`.";
                Err(ErrorBody::invalid("invalid_value", message).at(at))
            }
        }
    }
}

#[derive(Deserialize)]
struct ResponseWire {
    #[serde(default)]
    response: Option<ParamsWire>,
}

#[derive(Deserialize, Default)]
struct ParamsWire {
    instructions: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<ToolChoice>,
    max_output_tokens: Option<MaxTokens>,
    reasoning: Option<Reasoning>,
    metadata: Option<Map<String, Value>>,
    input: Option<Vec<ItemWire>>,
    conversation: Option<String>,
}

impl ResponseWire {
    fn params(self) -> Result<ResponseParams, Refusal> {
        let wire = self.response.unwrap_or_default();
        if let Some(tools) = &wire.tools {
            check_tools(tools, "response.tools")?;
        }
        let input = |(i, item): (usize, ItemWire)| match (item.kind.as_str(), &item.id) {
            ("item_reference", Some(id)) => Ok(InputItem::Reference(id.clone())),
            _ => item.item(&format!("response.input[{i}]")).map(InputItem::New),
        };
        let out_of_band = match wire.conversation.as_deref() {
            None | Some("auto") => false,
            Some("none") => true,
            Some(_) => {
                let message = "A response's conversation is `auto` or `none`.";
                return Err(ErrorBody::invalid("invalid_value", message).at("response.conversation"));
            }
        };
        Ok(ResponseParams {
            instructions: wire.instructions,
            tools: wire.tools,
            tool_choice: wire.tool_choice,
            max_output_tokens: wire.max_output_tokens,
            effort: wire.reasoning.and_then(|r| r.effort),
            metadata: wire.metadata,
            input: wire.input.map(|items| items.into_iter().enumerate().map(input).collect()).transpose()?,
            out_of_band,
        })
    }
}
