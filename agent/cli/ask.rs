//! `hearken ask clip.wav "question"`: one file, one answer.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use super::Settings;
use super::terminal::Terminal;
use crate::audio::file;
use crate::engine::{Content, Engine as _, Item, Pace, Request, Role, SessionId, Tenant, Thinking};

#[derive(Debug, Args)]
pub(super) struct Ask {
    /// The sound: wav, flac, ogg, opus or mp3.
    clip: PathBuf,
    /// A question about it; without one, the sound itself is answered.
    #[arg(default_value = "")]
    question: String,
    /// What the model is told first.
    #[arg(long)]
    system: Option<String>,
    /// Reply without reasoning.
    #[arg(long)]
    no_thinking: bool,
    /// Always the likeliest token: the same answer each time.
    #[arg(long)]
    greedy: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

impl Ask {
    pub(super) fn run(&self) -> Result<()> {
        let config = self.settings.load()?;
        super::log(&config);
        let sound = file::read(&self.clip, config.limits.file_seconds);
        let sound = sound.with_context(|| format!("cannot listen to {}", self.clip.display()))?;
        let mut content = vec![Content::Sound(sound.into())];
        if !self.question.is_empty() {
            // nano was trained with its instruction on a line of its own behind the sound.
            content.push(Content::Text(format!("\n{}", self.question)));
        }
        let system = self.system.clone().unwrap_or(config.thinking.instructions.clone());
        let mut conversation = Vec::new();
        if !system.is_empty() {
            conversation.push(Item::Message { role: Role::System, content: vec![Content::Text(system)] });
        }
        conversation.push(Item::Message { role: Role::User, content });
        let budget = config.thinking.budget(config.thinking.effort).filter(|_| !self.no_thinking);
        let mut sampling = config.sampling.for_turn(0);
        if self.greedy {
            sampling.temperature = 0.0;
        }
        let request = Request {
            session: SessionId(0),
            tenant: Tenant::default(),
            conversation,
            tools: String::new(),
            thinking: if budget.is_some() { Thinking::On } else { Thinking::Off },
            thinking_budget: budget.unwrap_or(0),
            pace: Pace::default(),
            max_reply_tokens: config.thinking.max_reply_tokens,
            sampling,
            words: false,
        };
        let engine = super::engine(&config)?;
        let mut turn = engine.respond(request)?;
        let mut terminal = Terminal::new(self.json);
        while let Some(event) = turn.blocking_next() {
            terminal.show(&event)?;
        }
        Ok(())
    }
}
