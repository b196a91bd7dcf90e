//! `hearken eval`: how much of what it is told nano understands, through the product's own path: sound goes into a session packet by packet,
//! is heard as it comes, and the turn is committed as with push-to-talk.
//!
//! A task file is JSON: `{"name": …, "tasks": [{"kind", "sound", "question", "system", "answers": […], "words"}]}`. `sound` is a file beside it;
//! `question` is typed after it; an answer is right when one of `answers` stands in the reply, whole words; `words` is what is said in the
//! sound. Tasks are counted by `kind`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::Settings;
use super::bench::talker::{Said, Talker};
use crate::audio::file;
use crate::config::{Config, Effort};
use crate::engine::Engine;
use crate::engine::minds::Minds;
use crate::protocol::openai::Settings as Wishes;

#[derive(Debug, Args)]
pub(super) struct Eval {
    /// Task files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Thinking budgets, tokens; 0 is a reply without thinking. Without: the configuration's own.
    #[arg(long, value_delimiter = ',')]
    budgets: Vec<usize>,
    /// Minds that vote.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    minds: Vec<usize>,
    /// Draws as configured; otherwise the likeliest token is taken.
    #[arg(long)]
    sampled: bool,
    /// One JSON object a task and a setting.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    name: String,
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    #[serde(default)]
    kind: String,
    sound: PathBuf,
    question: Option<String>,
    system: Option<String>,
    #[serde(default)]
    answers: Vec<String>,
    words: Option<String>,
}

/// What one kind of task came to.
#[derive(Debug, Default)]
struct Count {
    asked: usize,
    right: usize,
    words: usize,
    wrong_words: usize,
    thought: usize,
    milliseconds: Vec<f64>,
}

impl Eval {
    pub(super) fn run(&self) -> Result<()> {
        let config = self.settings.load()?;
        super::log(&config);
        let engine: Arc<dyn Engine> = Arc::new(super::engine(&config)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        if !self.json {
            println!("| tasks | kind | budget | minds | right | word errors | thinking tokens | reply after, ms |");
            println!("|---|---|---|---|---|---|---|---|");
        }
        for path in &self.files {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            let tasks: TaskFile =
                serde_json::from_str(&text).with_context(|| format!("{} is no task file", path.display()))?;
            let sounds = path.parent().unwrap_or(Path::new("."));
            let budgets: Vec<Option<usize>> =
                if self.budgets.is_empty() { vec![None] } else { self.budgets.iter().copied().map(Some).collect() };
            for budget in budgets {
                for minds in &self.minds {
                    let config = self.with(&config, budget, *minds);
                    let engine = Minds::new(engine.clone(), &config.thinking);
                    let label = (budget.map_or("–".into(), |b| b.to_string()), *minds);
                    let counts = runtime.block_on(self.tasks(&tasks, sounds, &engine, &Arc::new(config)))?;
                    self.tell(&tasks.name, &label, &counts);
                }
            }
        }
        Ok(())
    }

    fn with(&self, config: &Config, budget: Option<usize>, minds: usize) -> Config {
        let mut config = config.clone();
        config.thinking.minds = minds;
        match budget {
            None => {}
            Some(0) => config.thinking.effort = Effort::None,
            Some(budget) => (config.thinking.effort, config.thinking.high) = (Effort::High, budget),
        }
        if !self.sampled {
            config.sampling.temperature = 0.0;
        }
        config
    }

    async fn tasks(
        &self,
        tasks: &TaskFile,
        sounds: &Path,
        engine: &Minds,
        config: &Arc<Config>,
    ) -> Result<BTreeMap<String, Count>> {
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for (n, task) in tasks.tasks.iter().enumerate() {
            let path = sounds.join(&task.sound);
            let sound = file::read(&path, 600.0).with_context(|| format!("{} cannot be heard", path.display()))?;
            let mut wishes = Wishes::new(config);
            wishes.turn_detection = None;
            if let Some(system) = &task.system {
                wishes.instructions.clone_from(system);
            }
            let mut talker = Talker::wishing(engine, config, n as u64 + 1, 1, wishes);
            let (said, spent) = talker.commit(&sound, task.question.as_deref()).await?;
            let count = counts.entry(task.kind.clone()).or_default();
            count.milliseconds.push(spent.as_secs_f64() * 1e3);
            count.thought += said.reasoning_tokens;
            let right = is_right(&said.reply, &task.answers);
            if !task.answers.is_empty() {
                count.asked += 1;
                count.right += usize::from(right);
            }
            if let Some(words) = &task.words {
                let words = plain(words);
                count.words += words.len();
                count.wrong_words += distance(&words, &plain(heard(&said)));
            }
            if self.json {
                let line = json!({"tasks": tasks.name, "kind": task.kind, "sound": task.sound, "right": right,
                    "heard": heard(&said), "reasoning": said.reasoning, "reply": said.reply});
                println!("{line}");
            }
        }
        Ok(counts)
    }

    fn tell(&self, name: &str, (budget, minds): &(String, usize), counts: &BTreeMap<String, Count>) {
        for (kind, count) in counts {
            let mut times = count.milliseconds.clone();
            times.sort_by(f64::total_cmp);
            let (median, n) = (times[times.len() / 2], times.len());
            if self.json {
                let line = json!({"tasks": name, "kind": kind, "budget": budget, "minds": minds, "asked": count.asked,
                    "right": count.right, "words": count.words, "wrong_words": count.wrong_words,
                    "thinking_tokens": count.thought, "reply_ms": median});
                println!("{line}");
                continue;
            }
            let share = |part: usize, all: usize| match all {
                0 => "–".to_owned(),
                _ => format!("{:.1} % ({part} of {all})", 100.0 * part as f64 / all as f64),
            };
            let thought = count.thought as f64 / n as f64;
            println!(
                "| {name} | {kind} | {budget} | {minds} | {} | {} | {thought:.0} | {median:.0} |",
                share(count.right, count.asked),
                share(count.wrong_words, count.words)
            );
        }
    }
}

/// What it says that it heard: the words in its reasoning, which its answer stands on, or else those of an ear.
fn heard(said: &Said) -> &str {
    said.reasoning.split_once("The words:").map_or(said.heard.as_str(), |(_, words)| words.trim())
}

/// Lower-case words without signs.
fn plain(text: &str) -> Vec<String> {
    let letters =
        |c: char| if c.is_alphanumeric() || c == '\'' { c.to_lowercase().collect() } else { String::from(" ") };
    let text: String = text.chars().map(letters).collect();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Whether one of the answers stands in the reply.
fn is_right(reply: &str, answers: &[String]) -> bool {
    let reply = plain(reply);
    answers
        .iter()
        .map(|answer| plain(answer))
        .any(|answer| !answer.is_empty() && reply.windows(answer.len()).any(|part| part == answer))
}

/// Words put in, left out or changed: the least number.
fn distance(right: &[String], heard: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, a) in right.iter().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in heard.iter().enumerate() {
            let changed = before + usize::from(a != b);
            before = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(before + 1);
        }
    }
    row[heard.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, is_right, plain};

    #[test]
    fn an_answer_counts_as_whole_words_and_errors_are_counted_once() {
        let answers = ["Paris".to_owned(), "seven hundred".to_owned()];
        assert!(is_right("It is PARIS, of course.", &answers) && is_right("Seven hundred.", &answers));
        assert!(!is_right("Parisian", &answers) && !is_right("seven or eight hundred", &answers));
        assert!(!is_right("anything", &[String::new()]));
        let errors = |a: &str, b: &str| distance(&plain(a), &plain(b));
        assert_eq!(errors("ask not what your country", "ask not what your country"), 0);
        assert_eq!(errors("ask not what", "ask what you"), 2);
        assert_eq!(errors("", "three more words"), 3);
        assert_eq!(errors("Don't!", "don't"), 0);
    }
}
