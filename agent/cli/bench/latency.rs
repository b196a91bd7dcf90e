//! `hearken bench latency`: from the last sample of speech to the first token, for turns short and long, early and late in a conversation,
//! heard while they are spoken and heard as whole files.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::talker::{Marks, Speech, Talker};
use crate::config::Config;
use crate::engine::local::Local;
use crate::engine::{Engine, EngineError, Listen, Listening, Request, SessionId, Turn};

/// Seconds of a turn.
const LENGTHS: [u32; 4] = [2, 5, 10, 20];
/// What was said before a late turn: so many turns, each of two seconds.
const EARLIER: usize = 29;
const LATE: usize = EARLIER + 1;
/// See [`Talker::new`].
const HASTE: u32 = 6;

/// An engine as a server of whole files would be: it hears a turn when it is over.
struct WholeFile<'a>(&'a Local);

impl Engine for WholeFile<'static> {
    fn model(&self) -> &str {
        self.0.model()
    }

    fn respond(&self, request: Request) -> Result<Turn, EngineError> {
        self.0.respond(request)
    }

    fn listen(&self, _: Listen) -> Result<Listening, EngineError> {
        Err(EngineError::Empty("this one hears whole files"))
    }

    fn close(&self, session: SessionId) {
        self.0.close(session);
    }
}

/// One measured turn, milliseconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    pause: f64,
    over: f64,
    /// Tokens of the prompt that were not in the KV when the turn began.
    new: f64,
    queued: f64,
    encode: f64,
    words: f64,
    prefill: f64,
    first: f64,
    reply: f64,
    shown: f64,
}

impl Sample {
    fn of(marks: &Marks) -> Option<Self> {
        let (said, begun, over) = (marks.said?, marks.begun?, marks.over?);
        let (usage, timings) = marks.done?;
        let (reasoning, reply) = (marks.reasoning.or(marks.reply)?, marks.reply?);
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        let since = |from: tokio::time::Instant, to: tokio::time::Instant| ms(to.saturating_duration_since(from));
        Some(Self {
            pause: since(said, begun),
            over: since(said, over),
            new: (usage.sound_tokens + usage.text_tokens - usage.cached_tokens) as f64,
            queued: ms(timings.queued),
            encode: ms(timings.encode),
            words: ms(timings.words),
            prefill: ms(timings.prefill),
            first: since(begun, reasoning),
            reply: since(begun, reply),
            shown: since(said, reasoning.max(over)),
        })
    }
}

/// The middle one and the 95th of a hundred.
fn middle_and_tail(samples: &[Sample], of: fn(&Sample) -> f64) -> (f64, f64) {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    (at(0.5), at(0.95))
}

/// Measures `turns` of each kind and prints a table.
pub(super) async fn run(local: Local, mut config: Config, speech: &Speech, turns: usize, json: bool) -> Result<()> {
    // They live as long as the process: a talker borrows them.
    let local: &'static Local = Box::leak(Box::new(local));
    let whole: &'static WholeFile<'static> = Box::leak(Box::new(WholeFile(local)));
    // Only the first token of the reply is waited for.
    config.thinking.max_reply_tokens = 4;
    let mut offline = config.clone();
    offline.thinking.speculate = false;
    if !json {
        println!(
            "| turn | heard | speech s | pause found | turn over | new tokens | queued | encode | words | prefill | decode | first token after the pause (p95) | first reply token (p95) | shown after the last sample (p95) |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    }
    let mut id = 0;
    let paths: [(&str, &dyn Engine, Arc<Config>); 2] =
        [("while spoken", local, Arc::new(config)), ("as a file", whole, Arc::new(offline))];
    for number in [1, LATE] {
        for (path, engine, config) in &paths {
            let mut earlier = None;
            if number == LATE {
                id += 1;
                let mut talker = Talker::new(*engine, config, id, HASTE);
                for n in 0..EARLIER {
                    talker.converse(&speech.seconds(2.0, n)).await?;
                }
                earlier = Some(talker);
            }
            for length in LENGTHS {
                let mut samples = Vec::new();
                for n in 0..turns {
                    let sound = speech.seconds(length as f32, 100 + n);
                    let marks = match &mut earlier {
                        Some(talker) => {
                            let before = talker.items();
                            let marks = talker.converse(&sound).await?;
                            talker.forget(talker.items() - before);
                            marks
                        }
                        None => {
                            id += 1;
                            Talker::new(*engine, config, id, HASTE).converse(&sound).await?
                        }
                    };
                    samples.extend(Sample::of(&marks));
                }
                anyhow::ensure!(!samples.is_empty(), "no turn of {length} s was answered");
                row(number, path, length, &samples, json);
            }
        }
    }
    Ok(())
}

fn row(number: usize, path: &str, length: u32, samples: &[Sample], json: bool) {
    let mid = |of| middle_and_tail(samples, of).0;
    let both = |of| middle_and_tail(samples, of);
    let decode = mid(|s| (s.first - s.queued - s.encode - s.prefill).max(0.0));
    let (first, reply, shown) = (both(|s| s.first), both(|s| s.reply), both(|s| s.shown));
    if json {
        let line = serde_json::json!({
            "turn": number, "path": path, "seconds": length, "samples": samples.len(),
            "pause_ms": mid(|s| s.pause), "over_ms": mid(|s| s.over), "new_tokens": mid(|s| s.new),
            "queued_ms": mid(|s| s.queued), "encode_ms": mid(|s| s.encode), "words_ms": mid(|s| s.words), "prefill_ms": mid(|s| s.prefill), "decode_ms": decode,
            "first_ms": first.0, "first_p95_ms": first.1, "reply_ms": reply.0, "reply_p95_ms": reply.1,
            "shown_ms": shown.0, "shown_p95_ms": shown.1,
        });
        println!("{line}");
    } else {
        println!(
            "| {number} | {path} | {length} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {decode:.0} | {:.0} ({:.0}) | {:.0} ({:.0}) | {:.0} ({:.0}) |",
            mid(|s| s.pause),
            mid(|s| s.over),
            mid(|s| s.new),
            mid(|s| s.queued),
            mid(|s| s.encode),
            mid(|s| s.words),
            mid(|s| s.prefill),
            first.0,
            first.1,
            reply.0,
            reply.1,
            shown.0,
            shown.1,
        );
    }
}
