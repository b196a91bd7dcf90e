//! Functions that the model may call: `tools` and `tool_choice`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::{ErrorBody, Refusal};
use crate::engine::Calling;

/// Whether the model calls a function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It must not, and is not told of them.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It must call one.
    Required,
    /// It must call this one.
    Function(String),
}

impl ToolChoice {
    /// As the engine takes it; whether there are functions at all, `tools_json` says.
    pub fn calling(&self) -> Calling {
        match self {
            Self::None | Self::Auto => Calling::May,
            Self::Required => Calling::Must,
            Self::Function(name) => Calling::This(name.clone()),
        }
    }

    /// Whether it can be obeyed with these functions.
    ///
    /// # Errors
    /// It names one that is not among them.
    pub fn check(&self, tools: &[Value], at: &str) -> Result<(), Refusal> {
        match self {
            Self::Function(name) if !tools.iter().any(|tool| tool["name"] == name.as_str()) => {
                let message = format!("There is no function `{name}` among the tools.");
                Err(ErrorBody::invalid("invalid_value", message).at(at))
            }
            _ => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        // The Realtime API has the name here, chat completions one level below.
        let name = value.get("name").or_else(|| value.get("function")?.get("name")).and_then(Value::as_str);
        match (value.as_str(), name) {
            (Some("none"), _) => Ok(Self::None),
            (Some("auto"), _) => Ok(Self::Auto),
            (Some("required"), _) => Ok(Self::Required),
            (None, Some(name)) if value["type"] == "function" => Ok(Self::Function(name.to_owned())),
            _ => Err(serde::de::Error::custom(
                "a tool choice is \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"name\": …}",
            )),
        }
    }
}

impl Serialize for ToolChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Auto => serializer.serialize_str("auto"),
            Self::Required => serializer.serialize_str("required"),
            Self::Function(name) => json!({"type": "function", "name": name}).serialize(serializer),
        }
    }
}

/// Whether these are functions; how many bytes of JSON they are.
pub(super) fn check_tools(tools: &[Value], at: &str) -> Result<usize, Refusal> {
    for (i, tool) in tools.iter().enumerate() {
        let bad = |field: &str, message: &str| {
            Err(ErrorBody::invalid("invalid_value", message).at(format!("{at}[{i}].{field}")))
        };
        if tool["type"] != "function" {
            return bad("type", "Tools of type `function` are served here; their caller is the client.");
        }
        let name = tool["name"].as_str().unwrap_or_default();
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        {
            return bad("name", "A function's name has 1 to 64 letters, digits, `_`, `-` or `.`.");
        }
    }
    Ok(tools_json(tools, &ToolChoice::Auto).len())
}

/// Tools as the engine takes them: a JSON array, or nothing when there are none or they are not to be used.
pub(crate) fn tools_json(tools: &[Value], choice: &ToolChoice) -> String {
    match choice {
        ToolChoice::None => String::new(),
        _ if tools.is_empty() => String::new(),
        _ => Value::from(tools.to_vec()).to_string(),
    }
}
