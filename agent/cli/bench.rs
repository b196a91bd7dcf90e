//! `hearken bench`: how fast the model is on this machine, medians of several runs.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::Settings;
use crate::config::Words;
use crate::engine::local::measure::{Measured, Meter};

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Runs of each measurement; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Bench {
    pub(super) fn run(&self) -> Result<()> {
        let config = self.settings.load()?;
        let path = super::checkpoint(&config)?;
        let loading = Instant::now();
        let mut meter = Meter::open(&path, &config.model.device, config.model.words == Words::Beside)?;
        self.row("load", loading.elapsed(), "");
        for Measured { name, unit, amount, .. } in meter.works() {
            let mut times = Vec::new();
            for _ in 0..self.runs.max(1) {
                times.push(meter.run(name)?);
            }
            times.sort_unstable();
            let median = times[times.len() / 2];
            self.row(name, median, &format!("{:.1} {unit}", amount / median.as_secs_f64()));
        }
        Ok(())
    }

    fn row(&self, name: &str, time: Duration, rate: &str) {
        let ms = time.as_secs_f64() * 1e3;
        if self.json {
            println!("{}", serde_json::json!({"name": name, "ms": ms, "rate": rate}));
        } else {
            println!("{name:<34} {ms:>10.1} ms   {rate}");
        }
    }
}
