//! Transcriptions: what is asked of one, and its forms: JSON, text, SRT, WebVTT, and the events of a streamed one.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::openai::{ErrorBody, Refusal};

/// In which form the words are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// `{"text": …}`
    #[default]
    Json,
    /// The words alone.
    Text,
    /// With utterances and times.
    Verbose,
    /// SubRip.
    Srt,
    /// WebVTT.
    Vtt,
}

impl Form {
    /// Of its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json | Self::Verbose => "application/json",
            Self::Text | Self::Srt => "text/plain; charset=utf-8",
            Self::Vtt => "text/vtt; charset=utf-8",
        }
    }
}

/// The fields of a request beside its file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    /// The answer's form.
    pub form: Form,
    /// Whether the words are wanted as they are read.
    pub stream: bool,
    /// What the client says is spoken; a hint without effect.
    pub language: Option<String>,
}

impl Wishes {
    /// Takes in one form field. Fields without effect here (`model`, `prompt`, `temperature`, …) are passed over.
    ///
    /// # Errors
    /// A value that cannot be obeyed.
    pub fn field(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        let bad = |message: &str| Err(ErrorBody::invalid("invalid_value", message).at(name));
        match (name, value) {
            ("response_format", "json") => self.form = Form::Json,
            ("response_format", "text") => self.form = Form::Text,
            ("response_format", "verbose_json") => self.form = Form::Verbose,
            ("response_format", "srt") => self.form = Form::Srt,
            ("response_format", "vtt") => self.form = Form::Vtt,
            ("response_format", _) => return bad("A response_format is json, text, verbose_json, srt or vtt."),
            ("stream", "true" | "True" | "1") => self.stream = true,
            ("stream", "false" | "False" | "0" | "") => self.stream = false,
            ("stream", _) => return bad("`stream` is true or false."),
            ("language", "") => {}
            ("language", language) if language.len() <= 32 => self.language = Some(language.to_owned()),
            ("language", _) => return bad("A language is named by its code, such as `en`."),
            ("timestamp_granularities[]" | "timestamp_granularities", "segment") => {}
            ("timestamp_granularities[]" | "timestamp_granularities", _) => {
                return bad("Times are told of utterances (`segment`), not of words.");
            }
            _ => {}
        }
        Ok(())
    }
}

/// What was said from when to when.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Seconds into the file.
    pub start: f64,
    /// Seconds into the file.
    pub end: f64,
    /// The words.
    pub text: String,
}

/// All words, in one line.
pub fn joined(said: &[Said]) -> String {
    let words: Vec<&str> = said.iter().map(|said| said.text.trim()).filter(|words| !words.is_empty()).collect();
    words.join(" ")
}

/// The whole answer to a request that is not streamed. `seconds` is the file's length.
pub fn render(said: &[Said], seconds: f64, wishes: &Wishes) -> String {
    match wishes.form {
        Form::Json => json!({"text": joined(said), "usage": usage(seconds)}).to_string(),
        Form::Text => joined(said) + "\n",
        Form::Verbose => {
            let segment = |(id, said): (usize, &Said)| json!({"id": id, "start": round(said.start), "end": round(said.end), "text": said.text.trim()});
            json!({
                "task": "transcribe",
                "language": wishes.language.as_deref().unwrap_or("en"),
                "duration": round(seconds),
                "text": joined(said),
                "segments": said.iter().enumerate().map(segment).collect::<Vec<_>>(),
                "usage": usage(seconds),
            })
            .to_string()
        }
        Form::Srt => cues(said, ',', ""),
        Form::Vtt => cues(said, '.', "WEBVTT\n\n"),
    }
}

/// The words of a streamed answer as they are told: utterances are joined by one space, and the pieces together are what [`done`] says.
#[derive(Debug, Default)]
pub struct Told {
    is_begun: bool,
    in_utterance: bool,
    /// Spaces that wait for the words after them.
    spaces: String,
}

impl Told {
    /// An utterance begins.
    pub fn utterance(&mut self) {
        self.in_utterance = false;
        self.spaces.clear();
    }

    /// The next piece as it is to be told; `None` while it is nothing but spaces.
    pub fn piece(&mut self, piece: &str) -> Option<String> {
        let words = piece.trim_start();
        if words.is_empty() {
            self.spaces.push_str(piece);
            return None;
        }
        self.spaces.push_str(&piece[..piece.len() - words.len()]);
        let before = match (self.in_utterance, self.is_begun) {
            (true, _) => std::mem::take(&mut self.spaces),
            (false, begun) => if begun { " " } else { "" }.to_owned(),
        };
        let told = words.trim_end();
        self.spaces = words[told.len()..].to_owned();
        (self.is_begun, self.in_utterance) = (true, true);
        Some(before + told)
    }
}

/// The event of a new piece.
pub fn delta(delta: &str) -> Value {
    json!({"type": "transcript.text.delta", "delta": delta})
}

/// The event that ends a streamed answer.
pub fn done(said: &[Said], seconds: f64) -> Value {
    json!({"type": "transcript.text.done", "text": joined(said), "usage": usage(seconds)})
}

fn usage(seconds: f64) -> Value {
    json!({"type": "duration", "seconds": round(seconds)})
}

/// Milliseconds are enough, and short in JSON.
fn round(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// Cues of SRT and WebVTT, which differ in their head and the mark before the milliseconds.
fn cues(said: &[Said], mark: char, head: &str) -> String {
    let mut out = head.to_owned();
    let spoken = said.iter().filter(|said| !said.text.trim().is_empty());
    for (n, Said { start, end, text }) in spoken.enumerate() {
        // An arrow inside a cue would be read as another cue's times.
        let text = text.trim().replace("-->", "→").replace(['\r', '\n'], " ");
        let number = n + 1;
        let _ = write!(out, "{number}\n{} --> {}\n{text}\n\n", clock(*start, mark), clock(*end, mark));
    }
    out
}

/// `hh:mm:ss` and milliseconds.
pub fn clock(seconds: f64, mark: char) -> String {
    let ms = (seconds.max(0.0) * 1e3).round() as u64;
    let (s, m, h) = (ms / 1000 % 60, ms / 60_000 % 60, ms / 3_600_000);
    format!("{h:02}:{m:02}:{s:02}{mark}{:03}", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_a_stream_are_its_whole() {
        let utterances = [&[" What", " was ", " ", "said"][..], &["", "  "], &["here? ", "\n"], &["Yes."]];
        let mut told = Told::default();
        let mut stream = String::new();
        for pieces in utterances {
            told.utterance();
            stream.extend(pieces.iter().filter_map(|piece| told.piece(piece)));
        }
        let said = utterances.map(|pieces| Said { start: 0.0, end: 0.0, text: pieces.concat() });
        assert_eq!(stream, joined(&said));
        assert_eq!(stream, "What was  said here? Yes.");
    }

    #[test]
    fn subtitles_have_the_shapes_of_their_formats() {
        let said = [
            Said { start: 0.0, end: 1.25, text: " Hello there. ".into() },
            Said { start: 2.0, end: 2.5, text: String::new() },
            Said { start: 3661.0005, end: 3662.9996, text: "a --> b\nc".into() },
        ];
        let wishes = |form| Wishes { form, ..Wishes::default() };
        assert_eq!(
            render(&said, 3700.0, &wishes(Form::Srt)),
            "1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n01:01:01,001 --> 01:01:03,000\na → b c\n\n"
        );
        assert!(render(&said, 3700.0, &wishes(Form::Vtt)).starts_with("WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.250\n"));
        assert_eq!(render(&said, 1.0, &wishes(Form::Text)), "Hello there. a --> b\nc\n");
    }
}
