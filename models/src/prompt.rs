//! The conversation a model continues, and the two chat formats that our checkpoints were trained on.
//!
//! The format belongs to the checkpoint, not to the code: Step-Audio speaks `<|BOT|>role … <|EOT|>`, nano's Qwen base
//! speaks ChatML. Both write their reasoning first, so a thinking continuation *begins inside the reasoning*.
//! Text that came from outside is kept apart from the markers ([`Piece::Text`] against [`Piece::Control`]), so that a
//! user who types `<|EOT|>` writes six characters and does not end a turn.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The person who is heard or types.
    User,
    /// The model.
    Assistant,
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text; markers in it have no power.
    Text(String),
    /// Sound: 16 kHz mono samples in −1..1. Longer than 25 s is cut into segments by the checkpoint.
    Sound(Arc<[f32]>),
}

/// One item of a conversation, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Something said, heard or typed. An assistant's message is its reply alone: old reasoning is not kept.
    Message {
        /// Who says it.
        role: Role,
        /// What is said.
        content: Vec<Content>,
    },
    /// The model asked for a tool.
    ToolCall {
        /// The function's name.
        name: String,
        /// Its arguments, JSON text.
        arguments: String,
    },
    /// What the tool answered.
    ToolResult {
        /// The function's name.
        name: String,
        /// Its output as text.
        output: String,
    },
}

/// What a continuation is to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thinking {
    /// Reason first, then reply.
    #[default]
    On,
    /// An empty reasoning, then the reply at once.
    Off,
}

/// A rendered prompt is a row of these.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Markers of the format: special tokens are recognised.
    Control(String),
    /// Text from outside: special tokens are *not* recognised.
    Text(String),
    /// One stretch of sound, to be replaced by its adaptor frames.
    Sound(Arc<[f32]>),
}

/// A chat format. Sources: MODEL "Prompt" (the reference client of Step-Audio-R1); Qwen2.5's ChatML template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptFormat {
    /// `<|BOT|>role\n…<|EOT|>`, audio between `<audio_start>` and `<audio_end>`.
    Step,
    /// `<|im_start|>role\n…<|im_end|>\n`, audio bare, as nano was trained.
    ChatMl,
}

impl PromptFormat {
    /// The literal that ends every turn, and so the reply.
    pub fn stop(self) -> &'static str {
        match self {
            Self::Step => "<|EOT|>",
            Self::ChatMl => "<|im_end|>",
        }
    }

    /// What stands between the end of the reasoning and the reply, the marker included.
    pub fn end_of_thinking(self) -> &'static str {
        match self {
            Self::Step => "\n</think>\n",
            Self::ChatMl => "\n</think>\n\n",
        }
    }

    /// What stands behind a message's last sound to ask for its words, up to the point where they begin: no reasoning, and nothing else is
    /// asked. nano was trained on these very words.
    pub fn transcription(self) -> Vec<Piece> {
        self.question("\nTranscribe the speech.")
    }

    /// What stands behind a message's last sound to ask something about it, up to the point where the answer begins, without reasoning.
    pub fn question(self, text: &str) -> Vec<Piece> {
        let mut out = Rendered::default();
        if self == Self::Step {
            out.control("<audio_end>".into());
        }
        out.text(text);
        out.control(self.close());
        out.control(self.open("assistant"));
        out.control(self.thought(Thinking::Off).into());
        out.pieces
    }

    /// What the assistant's turn begins with.
    fn thought(self, thinking: Thinking) -> &'static str {
        match (self, thinking) {
            (_, Thinking::On) => "<think>\n",
            (Self::Step, Thinking::Off) => "<think>\n\n</think>\n",
            (Self::ChatMl, Thinking::Off) => "<think>\n\n</think>\n\n",
        }
    }

    /// How a call is written: what stands before the function's name, between it and the arguments, and behind them. In Step's format the
    /// outer two hold markers; in Qwen's they are plain text, for the Coder models never learned its tokens for them.
    pub fn call(self) -> [&'static str; 3] {
        match self {
            Self::Step => ["<tool_call>function\n", "\n", "</tool_call>"],
            Self::ChatMl => ["<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"],
        }
    }

    /// Whether a call's markers are tokens of their own.
    pub fn marks_calls(self) -> bool {
        self == Self::Step
    }

    /// Renders `items` up to the point where the assistant's words begin.
    ///
    /// `tools` is the JSON array of function schemas, empty when there are none.
    pub fn render(self, items: &[Item], tools: &str, thinking: Thinking) -> Vec<Piece> {
        let mut out = Rendered::default();
        let mut tools_due = !tools.is_empty();
        for item in items {
            let leads = matches!(item, Item::Message { role: Role::System, .. });
            if tools_due && !leads {
                self.tools(tools, &mut out);
                tools_due = false;
            }
            self.item(item, &mut out);
        }
        if tools_due {
            self.tools(tools, &mut out);
        }
        out.control(self.open("assistant"));
        out.control(self.thought(thinking).into());
        out.pieces
    }

    fn open(self, role: &str) -> String {
        match self {
            Self::Step => format!("<|BOT|>{role}\n"),
            Self::ChatMl => format!("<|im_start|>{role}\n"),
        }
    }

    fn close(self) -> String {
        match self {
            Self::Step => self.stop().into(),
            Self::ChatMl => format!("{}\n", self.stop()),
        }
    }

    fn role(self, role: Role) -> &'static str {
        match (self, role) {
            (_, Role::System) => "system",
            (Self::Step, Role::User) => "human",
            (Self::ChatMl, Role::User) => "user",
            (_, Role::Assistant) => "assistant",
        }
    }

    fn tools(self, tools: &str, out: &mut Rendered) {
        match self {
            Self::Step => {
                out.control(self.open("tool_json_schemas"));
                out.text(tools);
            }
            // In one message with the instructions, if there are any.
            Self::ChatMl => {
                if out.take_back(&self.close()) {
                    out.text("\n\n");
                } else {
                    out.control(self.open("system"));
                }
                out.text(QWEN_TOOLS_BEFORE);
                out.text(&qwen_tools(tools));
                out.text(QWEN_TOOLS_BEHIND);
            }
        }
        out.control(self.close());
    }

    fn item(self, item: &Item, out: &mut Rendered) {
        match item {
            Item::Message { role, content } => {
                out.control(self.open(self.role(*role)));
                for part in content {
                    match part {
                        Content::Text(text) => out.text(text),
                        Content::Sound(samples) if self == Self::Step => {
                            out.control("<audio_start>".into());
                            out.pieces.push(Piece::Sound(samples.clone()));
                            out.control("<audio_end>".into());
                        }
                        Content::Sound(samples) => out.pieces.push(Piece::Sound(samples.clone())),
                    }
                }
            }
            Item::ToolCall { name, arguments } => {
                out.control(self.open("assistant"));
                let [before, between, behind] = self.call();
                if self.marks_calls() {
                    out.control(before.into());
                    out.text(&format!("{name}{between}{arguments}"));
                    out.control(behind.into());
                } else {
                    out.text(&format!("{before}{name}{between}{arguments}{behind}"));
                }
            }
            Item::ToolResult { name, output } if self == Self::Step => {
                out.control(self.open("function_output"));
                out.text(&format!("{name}\n{output}"));
            }
            Item::ToolResult { output, .. } => {
                out.control(self.open("user"));
                out.text(&format!("<tool_response>\n{output}\n</tool_response>"));
            }
        }
        out.control(self.close());
    }
}

/// What Qwen2.5 is told of its functions, before and behind their schemas. Source: the chat template of Qwen2.5.
const QWEN_TOOLS_BEFORE: &str = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
    You are provided with function signatures within <tools></tools> XML tags:\n<tools>";
const QWEN_TOOLS_BEHIND: &str = "\n</tools>\n\nFor each function call, return a json object with function name and arguments \
    within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

/// The schemas as that template has them: one a line, each below `function`. What is no JSON array goes as it is.
fn qwen_tools(tools: &str) -> String {
    let Ok(tools) = serde_json::from_str::<Vec<serde_json::Value>>(tools) else { return format!("\n{tools}") };
    let line = |tool: &serde_json::Value| {
        let field = |name: &str| tool.get(name).map(|value| format!("\"{name}\": {value}"));
        let fields: Vec<String> = ["name", "description", "parameters"].into_iter().filter_map(field).collect();
        format!("\n{{\"type\": \"function\", \"function\": {{{}}}}}", fields.join(", "))
    };
    tools.iter().map(line).collect()
}

/// Pieces under construction; neighbours of one kind are joined, so that they are tokenised as one text.
#[derive(Default)]
struct Rendered {
    pieces: Vec<Piece>,
}

impl Rendered {
    fn control(&mut self, text: String) {
        match self.pieces.last_mut() {
            Some(Piece::Control(last)) => last.push_str(&text),
            _ => self.pieces.push(Piece::Control(text)),
        }
    }

    /// Takes the markers back that were written last, if they were these.
    fn take_back(&mut self, markers: &str) -> bool {
        let Some(Piece::Control(last)) = self.pieces.last_mut() else { return false };
        let Some(before) = last.strip_suffix(markers) else { return false };
        *last = before.to_owned();
        if last.is_empty() {
            self.pieces.pop();
        }
        true
    }

    fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.pieces.push(Piece::Text(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: Vec<Content>) -> Item {
        Item::Message { role: Role::User, content }
    }

    fn flat(pieces: &[Piece]) -> String {
        let part = |p: &Piece| match p {
            Piece::Control(t) | Piece::Text(t) => t.clone(),
            Piece::Sound(_) => "[sound]".into(),
        };
        pieces.iter().map(part).collect()
    }

    #[test]
    fn step_renders_as_the_reference_client() {
        let items = [
            Item::Message { role: Role::System, content: vec![Content::Text("Be brief.".into())] },
            user(vec![Content::Sound(vec![0.0; 4].into()), Content::Text("What is it?".into())]),
        ];
        assert_eq!(
            flat(&PromptFormat::Step.render(&items, "[]", Thinking::On)),
            "<|BOT|>system\nBe brief.<|EOT|><|BOT|>tool_json_schemas\n[]<|EOT|><|BOT|>human\n\
             <audio_start>[sound]<audio_end>What is it?<|EOT|><|BOT|>assistant\n<think>\n"
        );
    }

    #[test]
    fn a_tool_round_trip_is_rendered_for_step() {
        let items = [
            Item::ToolCall { name: "clock".into(), arguments: "{}".into() },
            Item::ToolResult { name: "clock".into(), output: "noon".into() },
        ];
        assert_eq!(
            flat(&PromptFormat::Step.render(&items, "", Thinking::Off)),
            "<|BOT|>assistant\n<tool_call>function\nclock\n{}</tool_call><|EOT|>\
             <|BOT|>function_output\nclock\nnoon<|EOT|><|BOT|>assistant\n<think>\n\n</think>\n"
        );
    }

    #[test]
    fn functions_are_told_to_qwen_as_its_own_template_does() {
        let items = [
            user(vec![Content::Text("Time?".into())]),
            Item::ToolCall { name: "clock".into(), arguments: "{\"zone\":\"UTC\"}".into() },
            Item::ToolResult { name: "clock".into(), output: "noon".into() },
        ];
        let tools = r#"[{"type": "function", "name": "clock", "parameters": {"type": "object"}}]"#;
        let told = flat(&PromptFormat::ChatMl.render(&items, tools, Thinking::Off));
        assert!(told.starts_with("<|im_start|>system\n# Tools\n"), "{told}");
        let schema = "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"clock\", \"parameters\": {\"type\":\"object\"}}}\n</tools>";
        assert!(told.contains(schema), "{told}");
        let rest = "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n\
                    {\"name\": \"clock\", \"arguments\": {\"zone\":\"UTC\"}}\n</tool_call><|im_end|>\n\
                    <|im_start|>user\n<tool_response>\nnoon\n</tool_response><|im_end|>\n\
                    <|im_start|>assistant\n<think>\n\n</think>\n\n";
        assert!(told.ends_with(rest), "{told}");
        let brief = Item::Message { role: Role::System, content: vec![Content::Text("Be brief.".into())] };
        let told = flat(&PromptFormat::ChatMl.render(&[brief, items[0].clone()], tools, Thinking::On));
        assert!(told.starts_with("<|im_start|>system\nBe brief.\n\n# Tools\n"), "{told}");
    }

    #[test]
    fn markers_typed_by_a_user_stay_text() {
        let pieces = PromptFormat::ChatMl.render(&[user(vec![Content::Text("<|im_end|>".into())])], "", Thinking::On);
        assert!(pieces.contains(&Piece::Text("<|im_end|>".into())));
    }
}
