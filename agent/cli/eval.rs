//! `hearken eval`: how much of what it is told nano understands, through the product's own path: sound goes into a session packet by packet,
//! is heard as it comes, and the turn is committed as with push-to-talk.
//!
//! A task file is JSON: `{"name": …, "tasks": [{"kind", "sound", "question", "system", "answers": […], "wrong": […], "words"}]}`. `sound` is a file beside it, or
//! several to be heard as one; `question` is typed after it; a reply is right when one of `answers`, if there are any, and none of `wrong` stands in it, whole words (a `wrong` beside
//! `tasks` is that of all of them); `words` is what is said in the sound. Tasks are counted by `kind`. For comparison the decoder is given text in the sound's place: what was truly said, or, as a cascade of
//! a recogniser and a language model would be, what the word ear heard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
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
    /// What stands in the place of a task's sound.
    #[arg(long, value_enum, default_value_t = Given::Sound)]
    given: Given,
    /// Draws as configured; otherwise the likeliest token is taken.
    #[arg(long)]
    sampled: bool,
    /// One JSON object a task and a setting.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Given {
    /// The sound itself.
    Sound,
    /// The words said in it, in writing.
    Words,
    /// The words that the word ear hears in it, in writing.
    Transcript,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    name: String,
    #[serde(default)]
    wrong: Vec<String>,
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Task {
    #[serde(default)]
    kind: String,
    sound: Sound,
    question: Option<String>,
    system: Option<String>,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default)]
    wrong: Vec<String>,
    words: Option<String>,
}

/// One file, or several that are joined with [`PAUSE`] between them.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Sound {
    One(PathBuf),
    Joined(Vec<PathBuf>),
}

/// Between two files that are heard as one: 0.3 s.
static PAUSE: [f32; 4800] = [0.0; 4800];

impl Sound {
    /// Samples of the files in `folder`.
    fn read(&self, folder: &Path) -> Result<Vec<f32>> {
        let files = match self {
            Self::One(file) => std::slice::from_ref(file),
            Self::Joined(files) => files,
        };
        let read = |file: &PathBuf| {
            let path = folder.join(file);
            file::read(&path, 600.0).with_context(|| format!("{} cannot be heard", path.display()))
        };
        Ok(files.iter().map(read).collect::<Result<Vec<_>>>()?.join(&PAUSE[..]))
    }
}

/// What one kind of task came to.
#[derive(Debug, Default)]
struct Count {
    asked: usize,
    right: usize,
    /// How often each answer is the right one.
    answers: BTreeMap<String, usize>,
    words: usize,
    wrong_words: usize,
    thought: usize,
    milliseconds: Vec<f64>,
}

impl Eval {
    pub(super) fn run(&self) -> Result<()> {
        let config = self.settings.load()?;
        super::log(&config);
        let engine: Arc<dyn Engine> = Arc::new(super::local(&config, true)?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        if !self.json {
            println!(
                "| tasks | kind | budget | minds | right | one answer to all | word errors | thinking tokens | reply after, ms |"
            );
            println!("|---|---|---|---|---|---|---|---|---|");
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
                    counts.iter().for_each(|(kind, count)| self.tell(&tasks.name, kind, &label, count));
                    if counts.len() > 1 {
                        self.tell(&tasks.name, "all", &label, &Count::sum(&counts));
                    }
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
            let sound = task.sound.read(sounds)?;
            let mut wishes = Wishes::new(config);
            wishes.turn_detection = None;
            if let Some(system) = &task.system {
                wishes.instructions.clone_from(system);
            }
            let mut talker = Talker::wishing(engine, config, 2 * n as u64 + 1, 1, wishes.clone());
            let written = match self.given {
                Given::Sound => None,
                Given::Words => {
                    Some(task.words.clone().with_context(|| format!("task {n} of {} has no words", tasks.name))?)
                }
                Given::Transcript => Some(talker.commit(&sound, None).await?.0.heard),
            };
            let (said, spent) = match written {
                None => talker.commit(&sound, task.question.as_deref()).await?,
                Some(words) => {
                    let text = task.question.iter().fold(words, |words, question| words + "\n" + question);
                    let mut talker = Talker::wishing(engine, config, 2 * n as u64 + 2, 1, wishes);
                    talker.commit(&[], Some(text.trim())).await?
                }
            };
            let count = counts.entry(task.kind.clone()).or_default();
            count.milliseconds.push(spent.as_secs_f64() * 1e3);
            count.thought += said.reasoning_tokens;
            let is_asked = !(task.answers.is_empty() && task.wrong.is_empty() && tasks.wrong.is_empty());
            let names_right = task.answers.is_empty() || names_one(&said.reply, &task.answers);
            let names_wrong = names_one(&said.reply, &task.wrong) || names_one(&said.reply, &tasks.wrong);
            let right = is_asked && names_right && !names_wrong;
            if is_asked {
                count.asked += 1;
                count.right += usize::from(right);
                *count.answers.entry(task.answers.join(" ")).or_default() += 1;
            }
            if let (Some(words), Given::Sound, None) = (&task.words, self.given, &task.question) {
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

    fn tell(&self, name: &str, kind: &str, (budget, minds): &(String, usize), count: &Count) {
        let mut times = count.milliseconds.clone();
        times.sort_by(f64::total_cmp);
        let (median, n) = (times[times.len() / 2], times.len());
        let one = count.answers.values().max().copied().unwrap_or(0);
        if self.json {
            let line = json!({"tasks": name, "kind": kind, "budget": budget, "minds": minds, "asked": count.asked,
                "right": count.right, "right_with_one_answer": one, "words": count.words, "wrong_words": count.wrong_words,
                "thinking_tokens": count.thought, "reply_ms": median});
            println!("{line}");
            return;
        }
        let share = |part: usize, all: usize| match all {
            0 => "–".to_owned(),
            _ => format!("{:.1} % ({part} of {all})", 100.0 * part as f64 / all as f64),
        };
        let thought = count.thought as f64 / n as f64;
        println!(
            "| {name} | {kind} | {budget} | {minds} | {} | {} | {} | {thought:.0} | {median:.0} |",
            share(count.right, count.asked),
            share(one, count.asked),
            share(count.wrong_words, count.words)
        );
    }
}

impl Count {
    /// All kinds together.
    fn sum(counts: &BTreeMap<String, Count>) -> Count {
        let mut all = Count::default();
        for count in counts.values() {
            all.asked += count.asked;
            all.right += count.right;
            // One answer for each kind.
            *all.answers.entry(String::new()).or_default() += count.answers.values().max().copied().unwrap_or(0);
            all.words += count.words;
            all.wrong_words += count.wrong_words;
            all.thought += count.thought;
            all.milliseconds.extend(&count.milliseconds);
        }
        all
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
fn names_one(reply: &str, answers: &[String]) -> bool {
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
    use super::{distance, names_one, plain};

    #[test]
    fn an_answer_counts_as_whole_words_and_errors_are_counted_once() {
        let answers = ["Paris".to_owned(), "seven hundred".to_owned()];
        assert!(names_one("It is PARIS, of course.", &answers) && names_one("Seven hundred.", &answers));
        assert!(!names_one("Parisian", &answers) && !names_one("seven or eight hundred", &answers));
        assert!(!names_one("anything", &[String::new()]));
        let errors = |a: &str, b: &str| distance(&plain(a), &plain(b));
        assert_eq!(errors("ask not what your country", "ask not what your country"), 0);
        assert_eq!(errors("ask not what", "ask what you"), 2);
        assert_eq!(errors("", "three more words"), 3);
        assert_eq!(errors("Don't!", "don't"), 0);
    }
}
