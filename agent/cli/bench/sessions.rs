//! `hearken bench sessions`: how many live conversations this machine carries at once, and what a session leaves behind when it ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::talker::{Speech, Talker};
use crate::config::Config;
use crate::engine::Engine;
use crate::engine::local::Local;

/// Seconds that a speaker speaks, and between an answer and the next turn.
const SPEECH: f32 = 5.0;
const REST: Duration = Duration::from_secs(2);

/// One stream: `turns` turns, and the milliseconds from each turn's end to its first token.
async fn stream(engine: &dyn Engine, config: &Arc<Config>, speech: &Speech, id: u64, turns: usize) -> Result<Vec<f64>> {
    let mut talker = Talker::new(engine, config, id, 1);
    let mut times = Vec::new();
    // Nobody begins with the others.
    let mut at = Instant::now() + Duration::from_millis(id * 1_370 % 5_000);
    for n in 0..turns {
        talker.wait(at).await;
        let marks = talker.converse(&speech.seconds(SPEECH, id as usize * 31 + n)).await?;
        at = Instant::now() + REST;
        let first = marks.reasoning.or(marks.reply);
        if let (Some(said), Some(over), Some(first)) = (marks.said, marks.over, first) {
            // What the listener waits for, whatever was thought ahead.
            times.push((first.max(over) - said).as_secs_f64() * 1e3);
        }
    }
    Ok(times)
}

fn part(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * part).round() as usize]
}

/// Adds streams until the 95th of a hundred waits twice as long as with one, and prints a line for each number of them.
pub(super) async fn run(
    engine: &Local,
    config: &Arc<Config>,
    speech: &Speech,
    turns: usize,
    label: &str,
) -> Result<()> {
    let mut alone = None;
    let mut id = 1_000;
    for streams in [1, 2, 3, 4, 6, 8, 12, 16] {
        let ids: Vec<u64> = (0..streams).map(|i| id + i).collect();
        id += streams;
        let talking = ids.iter().map(|id| stream(engine, config, speech, *id, turns));
        let mut times: Vec<f64> = futures_util::future::try_join_all(talking).await?.concat();
        anyhow::ensure!(!times.is_empty(), "nothing was answered");
        let (middle, tail) = (part(&mut times, 0.5), part(&mut times, 0.95));
        let alone = *alone.get_or_insert(tail);
        println!("| {label} | {streams} | {} | {middle:.0} | {tail:.0} | {:.2} |", times.len(), tail / alone);
        if tail > 2.0 * alone {
            break;
        }
    }
    Ok(())
}

/// The largest resident size of this process so far, MB.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Sessions one after the other, each a short spoken turn: what the process needs after 20 and after 200 of them.
pub(super) async fn memory(engine: &Local, config: &Arc<Config>, speech: &Speech) -> Result<()> {
    let mut after = Vec::new();
    for n in 1..=200_u64 {
        Talker::new(engine, config, n, 1).converse(&speech.seconds(1.5, n as usize)).await?;
        if n == 20 || n == 200 {
            after.extend(peak());
        }
    }
    match after[..] {
        [few, many] => {
            println!(
                "peak memory: {few:.0} MB after 20 sessions, {many:.0} MB after 200 ({:+.2} %)",
                (many / few - 1.0) * 100.0
            );
        }
        _ => println!("peak memory: this system does not tell it"),
    }
    Ok(())
}
