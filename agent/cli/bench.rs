//! `hearken bench`: how fast the model is on this machine, medians of several runs.

mod latency;
mod sessions;
pub(super) mod talker;
mod turns;
mod voice;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::Settings;
use crate::config::{Config, Words};
use crate::engine::local::measure::{Measured, Meter};

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// What to measure.
    #[arg(default_value = "works")]
    what: What,
    /// Speech to measure with, for all but `works`; for `turns` a folder that scripts/bench.d/turns.py made.
    #[arg(long, default_value = "tests/audio/jfk.wav")]
    speech: PathBuf,
    /// Turns of each kind, for all but `works`.
    #[arg(long, default_value_t = 20)]
    turns: usize,
    /// Speakers at once, for `turns`.
    #[arg(long, default_value_t = 2)]
    streams: usize,
    /// For `turns`: writes what the decoder makes of each utterance instead, for scripts/train/finish.py.
    #[arg(long, value_name = "FILE")]
    states: Option<PathBuf>,
    /// Runs of each measurement; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only works, or ways to find a turn's end, whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Only the perplexity of a text, a file with its token ids as a JSON list.
    #[arg(long, value_name = "FILE")]
    perplexity: Option<std::path::PathBuf>,
    /// Without what the processor has above this: portable, avx2, avx-vnni or avx512.
    #[arg(long, value_name = "LEVEL")]
    kernels: Option<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The model's works one by one: hearing, prefill, decoding.
    Works,
    /// From the last sample to the first token, in real time.
    Latency,
    /// Simultaneous conversations, in real time.
    Sessions,
    /// Memory after 20 and after 200 conversations.
    Memory,
    /// The two voice detectors, in noise and without.
    Voice,
    /// Where turns end: by silence, and where the model is asked.
    Turns,
}

impl Bench {
    pub(super) fn run(&self) -> Result<()> {
        let config = self.settings.load()?;
        if let Some(level) = &self.kernels {
            hearken_models::use_level(level)?;
        }
        if self.what == What::Works { self.works(&config) } else { self.live(config) }
    }

    /// A server's engine and sessions, in real time.
    fn live(&self, config: Config) -> Result<()> {
        super::log(&config);
        if let (What::Turns, Some(out)) = (self.what, &self.states) {
            return turns::states(&config, &self.speech, out);
        }
        if self.what == What::Turns {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            return runtime.block_on(turns::run(config, &self.speech, self.streams, &self.only));
        }
        let speech = talker::Speech::open(&self.speech, &config)?;
        if self.what == What::Voice {
            return voice::run(&config, &speech);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        if self.what == What::Latency {
            let engine = super::local(&config, true)?;
            return runtime.block_on(latency::run(engine, config, &speech, self.turns, self.json));
        }
        if self.what == What::Memory {
            let engine = super::local(&config, true)?;
            return runtime.block_on(sessions::memory(&engine, &Arc::new(config), &speech));
        }
        println!("| passes | streams | turns | turn to first token, ms | p95 | p95 against one stream |");
        println!("|---|---|---|---|---|---|");
        for (label, batched) in [("batched", true), ("one by one", false)] {
            let engine = super::local(&config, batched)?;
            runtime.block_on(sessions::run(&engine, &Arc::new(config.clone()), &speech, self.turns, label))?;
        }
        Ok(())
    }

    fn works(&self, config: &Config) -> Result<()> {
        let path = super::checkpoint(config)?;
        let loading = Instant::now();
        let mut meter = Meter::open(&path, &config.model.device, config.model.words == Words::Beside)?;
        let loading = loading.elapsed();
        self.row("load", [loading; 2], "");
        if let Some(file) = &self.perplexity {
            let ids: Vec<u32> = serde_json::from_slice(&std::fs::read(file)?)?;
            println!("{}", serde_json::json!({"name": "perplexity", "value": meter.perplexity(&ids)?}));
            return Ok(());
        }
        for Measured { name, unit, amount, .. } in meter.works() {
            if !name.contains(&self.only) {
                continue;
            }
            let mut times = Vec::new();
            for _ in 0..self.runs.max(1) {
                times.push(meter.run(name)?);
            }
            times.sort_unstable();
            let median = times[times.len() / 2];
            self.row(name, [median, times[0]], &format!("{:.1} {unit}", amount / median.as_secs_f64()));
        }
        Ok(())
    }

    /// The median, and the best, which says how much of the median is other programs' doing.
    fn row(&self, name: &str, times: [Duration; 2], rate: &str) {
        let [ms, best] = times.map(|time| time.as_secs_f64() * 1e3);
        if self.json {
            println!("{}", serde_json::json!({"name": name, "ms": ms, "best_ms": best, "rate": rate}));
        } else {
            println!("{name:<34} {ms:>10.3} ms {best:>10.3} ms   {rate}");
        }
    }
}
