//! An answer: the engine's events to a completion object, or to the chunks of one.

use serde_json::{Value, json};

use super::stop::Stops;
use crate::engine::{Event, Finish, Usage};

/// What an event adds to the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More reasoning.
    Reasoning(String),
    /// More of the reply.
    Text(String),
    /// A function is called.
    Call {
        /// Which call of the answer, from 0.
        index: usize,
        /// Joins it with its output.
        id: String,
        /// Which function.
        name: String,
        /// JSON text, or its beginning.
        arguments: String,
    },
    /// More of the arguments of the call that was told last.
    Arguments {
        /// Which it is.
        index: usize,
        /// More JSON text.
        delta: String,
    },
}

/// A call of the answer.
#[derive(Debug)]
struct Call {
    id: String,
    name: String,
    arguments: String,
    is_whole: bool,
}

/// An answer under way.
#[derive(Debug)]
pub struct Answer {
    id: String,
    created: u64,
    model: String,
    /// The name of the reasoning's field.
    field: String,
    stops: Stops,
    reasoning: String,
    text: String,
    calls: Vec<Call>,
}

impl Answer {
    /// An answer named after `suffix`, begun `created` seconds after 1970.
    pub fn new(suffix: &str, created: u64, model: &str, field: &str, stops: Vec<String>) -> Self {
        Self {
            id: format!("chatcmpl-{suffix}"),
            created,
            model: model.to_owned(),
            field: field.to_owned(),
            stops: Stops::new(stops),
            reasoning: String::new(),
            text: String::new(),
            calls: Vec::new(),
        }
    }

    /// Takes an event in; what is new of the answer, if anything.
    pub fn event(&mut self, event: &Event) -> Option<Delta> {
        match event {
            Event::Reasoning(text) if !text.is_empty() => {
                self.reasoning.push_str(text);
                Some(Delta::Reasoning(text.clone()))
            }
            Event::Reply(text) => {
                let text = self.stops.push(text);
                self.tell(text)
            }
            Event::CallDelta { name, delta } if !self.stops.is_stopped() => self.call(name, delta, false),
            Event::ToolCall { name, arguments } if !self.stops.is_stopped() => match self.calls.last_mut() {
                // It was told on the way.
                Some(call) if !call.is_whole => {
                    call.is_whole = true;
                    None
                }
                _ => self.call(name, arguments, true),
            },
            Event::Done { .. } => {
                let rest = self.stops.finish();
                self.tell(rest)
            }
            _ => None,
        }
    }

    /// More of the arguments of the call that is being written, or of a new one.
    fn call(&mut self, name: &str, delta: &str, is_whole: bool) -> Option<Delta> {
        let index = self.calls.len();
        if let Some(call) = self.calls.last_mut().filter(|call| !call.is_whole) {
            call.arguments.push_str(delta);
            return Some(Delta::Arguments { index: index - 1, delta: delta.to_owned() });
        }
        let id = format!("call_{}_{index}", self.id.trim_start_matches("chatcmpl-"));
        let (name, arguments) = (name.to_owned(), delta.to_owned());
        self.calls.push(Call { id: id.clone(), name: name.clone(), arguments: arguments.clone(), is_whole });
        Some(Delta::Call { index, id, name, arguments })
    }

    fn tell(&mut self, text: String) -> Option<Delta> {
        self.text.push_str(&text);
        (!text.is_empty()).then_some(Delta::Text(text))
    }

    /// Whether all that was asked for is there, so that the rest of the turn is for nobody.
    pub fn is_stopped(&self) -> bool {
        self.stops.is_stopped()
    }

    fn reason(&self, finish: Finish) -> &'static str {
        match finish {
            Finish::Length if !self.is_stopped() => "length",
            _ if !self.calls.is_empty() => "tool_calls",
            _ => "stop",
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }

    fn chunk(&self, delta: &Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        self.object("chat.completion.chunk", json!([choice]))
    }

    /// The chunk that begins the answer.
    pub fn opening(&self) -> Value {
        self.chunk(&json!({"role": "assistant", "content": ""}), None)
    }

    /// The chunk of a delta.
    pub fn chunk_of(&self, delta: &Delta) -> Value {
        let delta = match delta {
            Delta::Reasoning(text) => json!({ &self.field: text }),
            Delta::Text(text) => json!({"content": text}),
            Delta::Call { index, id, name, arguments } => {
                let function = json!({"name": name, "arguments": arguments});
                json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
            }
            Delta::Arguments { index, delta } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": delta}}]})
            }
        };
        self.chunk(&delta, None)
    }

    /// The chunk that ends it.
    pub fn closing(&self, finish: Finish) -> Value {
        self.chunk(&json!({}), Some(self.reason(finish)))
    }

    /// The chunk of its cost.
    pub fn usage_chunk(&self, usage: Usage) -> Value {
        let mut chunk = self.object("chat.completion.chunk", json!([]));
        chunk["usage"] = cost(usage);
        chunk
    }

    /// All of it as one object.
    pub fn whole(&self, finish: Finish, usage: Usage) -> Value {
        // An answer that only calls has no text, which is not the same as an empty one.
        let text = (self.calls.is_empty() || !self.text.is_empty()).then_some(&self.text);
        let mut message = json!({"role": "assistant", "content": text, "refusal": null});
        if !self.reasoning.is_empty() {
            message[&self.field] = json!(self.reasoning);
        }
        if !self.calls.is_empty() {
            let call = |call: &Call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            };
            message["tool_calls"] = self.calls.iter().map(call).collect();
        }
        let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": self.reason(finish)});
        let mut whole = self.object("chat.completion", json!([choice]));
        whole["usage"] = cost(usage);
        whole
    }
}

fn cost(u: Usage) -> Value {
    let (prompt, completion) = (u.text_tokens + u.sound_tokens, u.reasoning_tokens + u.reply_tokens);
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": u.cached_tokens, "audio_tokens": u.sound_tokens},
        "completion_tokens_details": {"reasoning_tokens": u.reasoning_tokens, "audio_tokens": 0},
    })
}
