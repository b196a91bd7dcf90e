//! Splits the token stream into reasoning, reply and tool calls, from the first character on.
//!
//! A thinking stream begins *inside* the reasoning: there is no opening tag to wait for, though a model that repeats one is forgiven.
//! Text that may be the beginning of a marker is held back until it is one or cannot be.

const THINK: &str = "<think>";
const END_THINK: &str = "</think>";
const CALL: &str = "<tool_call>";
const END_CALL: &str = "</tool_call>";

/// A stretch of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Reasoning text.
    Reasoning(String),
    /// The reasoning is over.
    EndOfReasoning,
    /// Reply text.
    Reply(String),
    /// A complete call.
    ToolCall {
        /// The function's name.
        name: String,
        /// JSON text, as the model wrote it.
        arguments: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reasoning,
    Reply,
    Call,
}

/// The splitter of one turn.
#[derive(Debug)]
pub struct Splitter {
    state: State,
    held: String,
    /// White space that opens a reply, or closes a reasoning, belongs to the format and not to the text.
    at_start: bool,
}

impl Splitter {
    /// `thinking`: whether the stream begins inside the reasoning.
    pub fn new(thinking: bool) -> Self {
        let state = if thinking { State::Reasoning } else { State::Reply };
        Self { state, held: String::new(), at_start: true }
    }

    /// Whether the reasoning is still open.
    pub fn is_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Takes more text, gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// The stream has ended: what was held back is what it looks like. A call without its end is text.
    pub fn finish(mut self) -> Vec<Part> {
        let mut out = Vec::new();
        if self.state == State::Call {
            self.state = State::Reply;
            self.held.insert_str(0, CALL);
        }
        let rest = std::mem::take(&mut self.held);
        self.emit(rest.trim_end(), &mut out);
        out
    }

    /// One marker or one stretch of text; whether there may be more.
    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        let markers: &[&str] = match self.state {
            State::Reasoning => &[END_THINK, THINK],
            State::Reply => &[CALL, END_THINK],
            State::Call => &[END_CALL],
        };
        let found = markers.iter().filter_map(|m| Some((self.held.find(m)?, *m))).min();
        let Some((at, marker)) = found else {
            if self.state != State::Call {
                let keep = undecided(&self.held, markers);
                let sure: String = self.held.drain(..self.held.len() - keep).collect();
                self.emit(&sure, out);
            }
            return false;
        };
        let before: String = self.held.drain(..at + marker.len()).collect();
        let before = &before[..at];
        match (self.state, marker) {
            (State::Reasoning, END_THINK) => {
                self.emit(before.trim_end(), out);
                out.push(Part::EndOfReasoning);
                (self.state, self.at_start) = (State::Reply, true);
            }
            (State::Reply, CALL) => {
                self.emit(before.trim_end(), out);
                self.state = State::Call;
            }
            (State::Call, _) => {
                out.push(call(before));
                (self.state, self.at_start) = (State::Reply, true);
            }
            // A second opening or closing tag is noise.
            _ => self.emit(before, out),
        }
        true
    }

    fn emit(&mut self, text: &str, out: &mut Vec<Part>) {
        let text = if self.at_start { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.at_start = false;
        let text = text.to_owned();
        out.push(if self.state == State::Reasoning { Part::Reasoning(text) } else { Part::Reply(text) });
    }
}

/// How many bytes at the end may still become part of a marker: a marker's beginning, and the white space before it.
fn undecided(text: &str, markers: &[&str]) -> usize {
    let begins = |n: &usize| markers.iter().any(|m| m.as_bytes().starts_with(&text.as_bytes()[text.len() - n..]));
    let longest = markers.iter().map(|m| m.len() - 1).max().unwrap_or(0).min(text.len());
    let marker = (1..=longest).rev().find(begins).unwrap_or(0);
    let rest = &text[..text.len() - marker];
    marker + rest.len() - rest.trim_end().len()
}

/// Reads `function\nNAME\n{json}` or `{"name": …, "arguments": {…}}`; what is of neither form is a call of what its first line says.
fn call(text: &str) -> Part {
    let text = text.trim();
    if let Ok(call) = serde_json::from_str::<serde_json::Value>(text)
        && let Some(name) = call["name"].as_str()
    {
        return Part::ToolCall { name: name.into(), arguments: call["arguments"].to_string() };
    }
    let text = text.strip_prefix("function\n").unwrap_or(text);
    let (name, arguments) = text.split_once('\n').unwrap_or((text, "{}"));
    Part::ToolCall { name: name.trim().into(), arguments: arguments.trim().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The whole stream's parts with neighbouring text joined.
    fn split(pieces: &[&str], thinking: bool) -> Vec<Part> {
        let mut splitter = Splitter::new(thinking);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|p| splitter.push(p)).collect();
        parts.extend(splitter.finish());
        parts.into_iter().fold(Vec::new(), |mut all: Vec<Part>, part| {
            match (all.last_mut(), part) {
                (Some(Part::Reply(a)), Part::Reply(b)) | (Some(Part::Reasoning(a)), Part::Reasoning(b)) => {
                    a.push_str(&b)
                }
                (_, part) => all.push(part),
            }
            all
        })
    }

    const STREAM: &str =
        "I hear <b> a man.\n</think>\n\nHi 👋 there.\n<tool_call>function\nclock\n{\"a\": 1}</tool_call>\nDone <";

    fn expected() -> Vec<Part> {
        vec![
            Part::Reasoning("I hear <b> a man.".into()),
            Part::EndOfReasoning,
            Part::Reply("Hi 👋 there.".into()),
            Part::ToolCall { name: "clock".into(), arguments: "{\"a\": 1}".into() },
            Part::Reply("Done <".into()),
        ]
    }

    #[test]
    fn a_whole_stream() {
        assert_eq!(split(&[STREAM], true), expected());
    }

    #[test]
    fn no_thinking_and_an_unfinished_call() {
        assert_eq!(
            split(&["\nYes. ", "<tool_call>function\nx"], false)[0],
            Part::Reply("Yes.<tool_call>function\nx".into())
        );
    }

    #[test]
    fn a_call_as_qwen_writes_it() {
        let stream = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let call = Part::ToolCall { name: "clock".into(), arguments: "{\"a\":1}".into() };
        assert_eq!(split(&[stream], false), [call]);
    }

    #[test]
    fn a_repeated_opening_tag_is_dropped() {
        assert_eq!(split(&["<think>\nHm", "</think>", "Yes"], true), split(&["Hm</think>Yes"], true));
    }

    proptest! {
        #[test]
        fn token_borders_do_not_matter(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..40)) {
            cuts.retain(|c| STREAM.is_char_boundary(*c));
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &STREAM[w[0]..w[1]]).collect();
            prop_assert_eq!(split(&pieces, true), expected());
        }
    }
}
