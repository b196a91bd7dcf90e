//! `hearken bench turns`: utterances with a pause in the middle, and where each way to find a turn's end puts it.
//!
//! Two things are wanted that work against each other: that nobody is cut off in a pause, and that nobody waits long who has finished.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::json;

use super::talker::Talker;
use crate::audio::{RATE, file, samples, samples_ms};
use crate::config::{Config, Words};
use crate::engine::local::measure::Meter;
use crate::engine::{Engine, EngineError, Listen, Listening, Request, SessionId, Turn};
use crate::protocol::openai::{Settings, parse_session};

/// Silence behind an utterance, seconds: the longest wait of the middle eagerness, and more.
const REST: f32 = 4.6;

/// One utterance, as scripts/bench.d/turns.py describes it.
#[derive(Debug, Clone, Deserialize)]
struct Utterance {
    file: String,
    kind: String,
    /// Begin and end of each, seconds.
    pauses: Vec<[f32; 2]>,
    #[serde(skip)]
    sound: Vec<f32>,
}

/// What became of one utterance.
struct Outcome {
    kind: String,
    pauses: usize,
    cut: usize,
    /// From the last word to the turn's end, ms.
    waited: Option<f64>,
}

/// Silence decides without an engine.
struct Deaf;

impl Engine for Deaf {
    fn model(&self) -> &str {
        "none"
    }

    fn respond(&self, _: Request) -> Result<Turn, EngineError> {
        Err(EngineError::Stopped)
    }

    fn listen(&self, _: Listen) -> Result<Listening, EngineError> {
        Err(EngineError::Stopped)
    }

    fn close(&self, _: SessionId) {}
}

/// Says each of these and finds the ends of its turns.
async fn speak(
    engine: &dyn Engine,
    config: &Arc<Config>,
    first: u64,
    utterances: &[Utterance],
    settings: &Settings,
    in_real_time: bool,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (n, utterance) in utterances.iter().enumerate() {
        let mut talker = Talker::wishing(engine, config, first + n as u64, 1, settings.clone());
        let said = utterance.sound.len();
        talker.say(&utterance.sound, in_real_time).await;
        talker.say(&vec![0.0; samples(REST)], in_real_time).await;
        let in_pause = |[from, to]: &&[f32; 2]| {
            talker.ends.iter().any(|end| (samples(*from)..samples(*to + 0.05)).contains(end) && *end < said)
        };
        outcomes.push(Outcome {
            kind: utterance.kind.clone(),
            pauses: utterance.pauses.len(),
            cut: utterance.pauses.iter().filter(in_pause).count(),
            waited: talker.ends.iter().find(|end| **end >= said).map(|end| ms(end - said)),
        });
    }
    outcomes
}

fn ms(samples: usize) -> f64 {
    samples as f64 * 1000.0 / f64::from(RATE)
}

/// Writes what the decoder makes of each utterance, finished and cut at each of its pauses, as JSON lines: what scripts/train/finish.py learns from. A
/// finished one holds its pause or not, and a cut one an earlier pause or none: that says nothing.
pub(super) fn states(config: &Config, folder: &Path, out: &Path) -> Result<()> {
    let path = super::super::checkpoint(config)?;
    let meter = Meter::open(&path, &config.model.device, config.model.words == Words::Beside)?;
    let mut out = BufWriter::new(File::create(out)?);
    for (n, Utterance { kind, pauses, sound, .. }) in utterances(folder)?.into_iter().enumerate() {
        let mut cases = Vec::new();
        match pauses[..] {
            [[from, to]] if n % 2 == 0 => {
                cases.push((true, [&sound[..samples(from)], &sound[samples(to).min(sound.len())..]].concat()));
            }
            _ => cases.push((true, sound.clone())),
        }
        for [from, _] in pauses {
            let said = &sound[..samples(from).min(sound.len())];
            let (before, after) = said.split_at(if n / 2 % 2 == 0 { 0 } else { said.len() * 2 / 5 });
            let earlier = if before.is_empty() { 0 } else { samples(0.7) };
            cases.push((false, [before, &vec![0.0; earlier], after].concat()));
        }
        for (finished, mut said) in cases {
            // As much of the pause as a turn has when it is asked about.
            said.resize(said.len() + samples_ms(config.voice.pause_ms), 0.0);
            let (words, state, chance) = meter.finished(&said)?;
            let row = json!({"kind": kind, "finished": finished, "words": words, "chance": chance, "state": state});
            writeln!(out, "{row}")?;
        }
    }
    Ok(())
}

fn utterances(folder: &Path) -> Result<Vec<Utterance>> {
    let list = folder.join("turns.json");
    let text = std::fs::read(&list).with_context(|| format!("{} cannot be read", list.display()))?;
    let mut utterances: Vec<Utterance> = serde_json::from_slice(&text)?;
    for utterance in &mut utterances {
        utterance.sound = file::read(&folder.join(&utterance.file), 60.0).context(utterance.file.clone())?;
    }
    Ok(utterances)
}

/// Prints the table.
pub(super) async fn run(config: Config, folder: &Path, streams: usize, only: &str) -> Result<()> {
    let utterances = utterances(folder)?;
    let engine = super::super::engine(&config)?;
    let config = Arc::new(config);
    println!(
        "| turn detection | utterances | pauses that ended the turn | waiting after the last word, ms, median | p95 |"
    );
    println!("|---|---|---|---|---|");
    let silence =
        |ms: u32| (format!("silence of {ms} ms"), json!({"type": "server_vad", "silence_duration_ms": ms}), false);
    let asked = |eagerness: &str| {
        (
            format!("the model is asked, eagerness {eagerness}"),
            json!({"type": "semantic_vad", "eagerness": eagerness}),
            true,
        )
    };
    let mut next = 1;
    for (name, wish, is_asked) in
        [silence(500), silence(700), silence(1000), silence(1500), asked("high"), asked("auto"), asked("low")]
    {
        if !name.contains(only) {
            continue;
        }
        let mut settings = Settings::new(&config);
        let update = json!({"type": "realtime", "reasoning": {"effort": "minimal"}, "max_output_tokens": 16,
            "audio": {"input": {"turn_detection": wish}}});
        let update = parse_session(update).map_err(|refusal| anyhow::anyhow!("{}", refusal.message))?;
        settings.apply(update, &config.voice);
        let share = utterances.len().div_ceil(if is_asked { streams.max(1) } else { 1 }).max(1);
        let engine: &dyn Engine = if is_asked { &engine } else { &Deaf };
        let speakers = utterances
            .chunks(share)
            .enumerate()
            .map(|(n, some)| speak(engine, &config, next + (n * share) as u64, some, &settings, is_asked));
        let outcomes: Vec<Outcome> = join_all(speakers).await.into_iter().flatten().collect();
        next += utterances.len() as u64;
        let mut kinds: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
        for outcome in &outcomes {
            kinds.entry(&outcome.kind).or_default().push(outcome);
        }
        kinds.insert("~ all of them", outcomes.iter().collect());
        for (kind, outcomes) in kinds {
            let (cut, pauses): (usize, usize) = outcomes.iter().fold((0, 0), |(c, p), o| (c + o.cut, p + o.pauses));
            let mut waited: Vec<f64> = outcomes.iter().map(|o| o.waited.unwrap_or(f64::INFINITY)).collect();
            waited.sort_by(f64::total_cmp);
            let at = |share: f64| waited[((waited.len() - 1) as f64 * share).round() as usize];
            let kind = kind.trim_start_matches("~ ");
            println!("| {name} | {kind} | {cut} of {pauses} | {:.0} | {:.0} |", at(0.5), at(0.95));
        }
    }
    Ok(())
}
