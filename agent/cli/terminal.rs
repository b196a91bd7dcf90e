//! A turn's events on a terminal, reasoning dimmed, or as JSON lines for machines.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::engine::{Event, Timings};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Writes events to stdout as they come.
pub(super) struct Terminal {
    json: bool,
    colour: bool,
    dimmed: bool,
    /// Whether the last character written ended a line.
    fresh: bool,
}

impl Terminal {
    pub(super) fn new(json: bool) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour, dimmed: false, fresh: true }
    }

    /// Shows a line of JSON.
    ///
    /// # Errors
    /// A closed pipe.
    pub(super) fn raw(&mut self, event: &Value) -> Result<()> {
        // Not println, which panics when the reader has gone.
        Ok(writeln!(std::io::stdout(), "{event}")?)
    }

    /// Shows one event.
    ///
    /// # Errors
    /// The engine's failure; a closed pipe.
    pub(super) fn show(&mut self, event: &Event) -> Result<()> {
        if self.json {
            self.raw(&as_json(event))?;
        }
        match event {
            Event::Failed(error) => return Err(anyhow!("{error}")),
            _ if self.json => {}
            Event::Heard(words) => self.line(&format!("heard: {words}"), true)?,
            Event::Reasoning(text) => self.write(text, true)?,
            Event::Reply(text) => self.write(text, false)?,
            Event::CallDelta { .. } | Event::Finished(_) => {}
            Event::ToolCall { name, arguments } => self.line(&format!("calls {name} {arguments}"), false)?,
            Event::Done { timings, .. } => self.line(&summary(timings), true)?,
        }
        Ok(())
    }

    fn line(&mut self, text: &str, dim: bool) -> Result<()> {
        if !self.fresh {
            self.write("\n", dim)?;
        }
        self.write(text, dim)?;
        self.write("\n", dim)
    }

    fn write(&mut self, text: &str, dim: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if self.dimmed != dim {
            self.dimmed = dim;
            if !self.fresh {
                out.write_all(b"\n")?;
            }
            if self.colour {
                out.write_all(if dim { DIM } else { PLAIN }.as_bytes())?;
            }
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        self.fresh = text.ends_with('\n');
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.colour && self.dimmed {
            drop(std::io::stdout().write_all(PLAIN.as_bytes()));
        }
    }
}

fn summary(t: &Timings) -> String {
    let ms = |d: Duration| d.as_millis();
    let (encode, words, prefill) = (ms(t.encode), ms(t.words), ms(t.prefill));
    format!("[ms: encode {encode}, words {words}, prefill {prefill}, think {}, reply {}]", ms(t.think), ms(t.reply))
}

fn as_json(event: &Event) -> Value {
    match event {
        Event::Heard(text) => json!({"type": "heard", "text": text}),
        Event::Finished(chance) => json!({"type": "finished", "chance": chance}),
        Event::Reasoning(text) => json!({"type": "reasoning", "text": text}),
        Event::Reply(text) => json!({"type": "reply", "text": text}),
        Event::CallDelta { name, delta } => json!({"type": "call_delta", "name": name, "delta": delta}),
        Event::ToolCall { name, arguments } => json!({"type": "tool_call", "name": name, "arguments": arguments}),
        Event::Failed(error) => json!({"type": "failed", "message": error.to_string()}),
        Event::Done { finish, usage, timings } => {
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            json!({
                "type": "done",
                "finish": format!("{finish:?}").to_lowercase(),
                "usage": {
                    "text_tokens": usage.text_tokens, "sound_tokens": usage.sound_tokens,
                    "cached_tokens": usage.cached_tokens, "reasoning_tokens": usage.reasoning_tokens,
                    "reply_tokens": usage.reply_tokens,
                },
                "timings_ms": {
                    "queued": ms(timings.queued), "encode": ms(timings.encode), "words": ms(timings.words),
                    "prefill": ms(timings.prefill), "think": ms(timings.think), "reply": ms(timings.reply),
                },
            })
        }
    }
}
