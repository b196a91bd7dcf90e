//! Splits the token stream into reasoning, reply and tool calls, from the first character on.
//!
//! A thinking stream begins *inside* the reasoning: there is no opening tag to wait for, though a model that repeats one is forgiven.
//! Text that may be the beginning of a marker is held back until it is one or cannot be, and no longer.

mod call;

use call::Call;

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
    /// More of the arguments of a call that is being written.
    CallDelta {
        /// The function's name.
        name: String,
        /// More JSON text.
        delta: String,
    },
    /// A complete call.
    ToolCall {
        /// The function's name.
        name: String,
        /// JSON text, as the model wrote it. What was told of it on the way is all of it, or nothing.
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
    /// The call being written.
    call: Call,
    /// White space that opens a reply, or closes a reasoning, belongs to the format and not to the text.
    at_start: bool,
}

impl Splitter {
    /// `thinking`: whether the stream begins inside the reasoning.
    pub fn new(thinking: bool) -> Self {
        let state = if thinking { State::Reasoning } else { State::Reply };
        Self { state, held: String::new(), call: Call::default(), at_start: true }
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

    /// The stream has ended: what was held back is what it looks like. A call that lacks its end mark alone is one all the same; one that was cut off
    /// earlier stays as far as it was told, and if nothing of it was, it is text.
    pub fn finish(mut self) -> Vec<Part> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.held);
        self.emit(rest.trim_end(), &mut out);
        if self.state == State::Call {
            self.state = State::Reply;
            match std::mem::take(&mut self.call).cut() {
                Ok(call) => out.extend(call),
                Err(text) => self.emit(format!("{CALL}{text}").trim_end(), &mut out),
            }
        }
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
            let keep = undecided(&self.held, markers);
            let sure: String = self.held.drain(..self.held.len() - keep).collect();
            self.emit(&sure, out);
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
                self.emit(before.trim_end(), out);
                out.push(std::mem::take(&mut self.call).end());
                (self.state, self.at_start) = (State::Reply, true);
            }
            // A second opening or closing tag is noise.
            _ => self.emit(before, out),
        }
        true
    }

    fn emit(&mut self, text: &str, out: &mut Vec<Part>) {
        if self.state == State::Call {
            return self.call.push(text, out);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The whole stream's parts, each of them as it came.
    fn parts(pieces: &[&str], thinking: bool) -> Vec<Part> {
        let mut splitter = Splitter::new(thinking);
        let mut parts: Vec<Part> = pieces.iter().flat_map(|p| splitter.push(p)).collect();
        parts.extend(splitter.finish());
        parts
    }

    /// The same with neighbouring text joined.
    fn split(pieces: &[&str], thinking: bool) -> Vec<Part> {
        parts(pieces, thinking).into_iter().fold(Vec::new(), |mut all: Vec<Part>, part| {
            match (all.last_mut(), part) {
                (Some(Part::Reply(a)), Part::Reply(b))
                | (Some(Part::Reasoning(a)), Part::Reasoning(b))
                | (Some(Part::CallDelta { delta: a, .. }), Part::CallDelta { delta: b, .. }) => a.push_str(&b),
                (_, part) => all.push(part),
            }
            all
        })
    }

    fn delta(name: &str, delta: &str) -> Part {
        Part::CallDelta { name: name.into(), delta: delta.into() }
    }

    fn call(name: &str, arguments: &str) -> Part {
        Part::ToolCall { name: name.into(), arguments: arguments.into() }
    }

    const STREAM: &str = "I hear <b> a man.\n</think>\n\nHi 👋 there.\n<tool_call>function\nclock\n{\"a\": 1}\n</tool_call>\n\
        <tool_call>\n{ \"name\": \"l\\u0069ght\",\"arguments\" : {\"a\": [\"}]\\\"\", {\"<\": 2}]} }\n</tool_call>\nDone <";

    fn expected() -> Vec<Part> {
        let light = "{\"a\": [\"}]\\\"\", {\"<\": 2}]}";
        vec![
            Part::Reasoning("I hear <b> a man.".into()),
            Part::EndOfReasoning,
            Part::Reply("Hi 👋 there.".into()),
            delta("clock", "{\"a\": 1}"),
            call("clock", "{\"a\": 1}"),
            delta("light", light),
            call("light", light),
            Part::Reply("Done <".into()),
        ]
    }

    #[test]
    fn a_whole_stream() {
        assert_eq!(split(&[STREAM], true), expected());
    }

    #[test]
    fn text_is_held_no_longer_than_it_may_be_a_call() {
        let mut splitter = Splitter::new(false);
        for (piece, told) in [("Is a", "Is a"), (" <", ""), ("tool", ""), ("s> b", " <tools> b"), (" ok", " ok")] {
            let told: Vec<Part> =
                Some(told).filter(|t| !t.is_empty()).map(|t| Part::Reply(t.into())).into_iter().collect();
            assert_eq!(splitter.push(piece), told, "{piece}");
        }
    }

    #[test]
    fn arguments_are_told_as_they_are_written() {
        for (opening, closing) in [
            ("<tool_call>function\nclock\n", "\n</tool_call>"),
            ("<tool_call>\n{\"name\": \"clock\", \"arguments\": ", "}\n</tool_call>"),
        ] {
            let mut splitter = Splitter::new(false);
            assert_eq!(splitter.push(opening), [], "not a word of it is text");
            for piece in ["{\"zone\"", ": \"UTC", "\"}"] {
                assert_eq!(splitter.push(piece), [delta("clock", piece)]);
            }
            assert_eq!(splitter.push(closing), [call("clock", "{\"zone\": \"UTC\"}")]);
            assert_eq!(splitter.finish(), []);
        }
    }

    #[test]
    fn a_call_without_its_end() {
        let cut = |stream: &str| split(&[stream], false);
        let begun = "<tool_call>{\"name\": \"clock\", \"arguments\": {\"a\": 1";
        assert_eq!(cut(begun), [delta("clock", "{\"a\": 1")], "told, and never made");
        for missing in ["}", "}}", "}}\n</tool"] {
            assert_eq!(cut(&format!("{begun}{missing}")), [delta("clock", "{\"a\": 1}"), call("clock", "{\"a\": 1}")]);
        }
        assert_eq!(cut("\nYes. <tool_call>function\nx"), [Part::Reply("Yes.<tool_call>function\nx".into())]);
    }

    #[test]
    fn a_call_of_another_form_is_told_when_it_is_whole() {
        for (text, expected) in [
            ("\n{\"arguments\": {\"a\": 1}, \"name\": \"clock\"}\n", call("clock", "{\"a\":1}")),
            ("{\"name\": \"clock\", \"arguments\": null}", call("clock", "null")),
            ("{\"name\": \"clock\"}", call("clock", "{}")),
            ("function\nclock\n", call("clock", "{}")),
            ("clock", call("clock", "{}")),
            ("{\"nam", call("{\"nam", "{}")),
        ] {
            assert_eq!(split(&["<tool_call>", text, "</tool_call>"], false), [expected], "{text}");
        }
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

        /// I8, and what was told of a call on the way is all of it.
        #[test]
        fn any_call_is_told_once(pieces in proptest::collection::vec("[{}\"\\\\:, \\na]{0,4}|<tool_call>|</tool_call>|\"name\": \"a\"|\"arguments\": ", 0..20)) {
            let mut told = String::new();
            for part in parts(&pieces.iter().map(|p| &p[..]).collect::<Vec<_>>(), false) {
                match part {
                    Part::CallDelta { delta, .. } => told.push_str(&delta),
                    Part::ToolCall { arguments, .. } if told.is_empty() => drop(arguments),
                    Part::ToolCall { arguments, .. } => prop_assert_eq!(std::mem::take(&mut told), arguments),
                    _ => prop_assert_eq!(&told, ""),
                }
            }
        }
    }
}
