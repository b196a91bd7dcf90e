//! `hearken ask clip.wav "question"`: one file, one answer.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;

use super::Settings;
use super::remote::{Remote, Target, as_local, pcm16};
use super::terminal::Terminal;
use crate::audio::{RATE, file};
use crate::engine::{Calling, Content, Ending, Engine as _, Event, Item, Request, Role, SessionId, Tenant, Thinking};

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
    target: Target,
    #[command(flatten)]
    settings: Settings,
}

impl Ask {
    pub(super) fn run(&self) -> Result<()> {
        let config = self.settings.load()?;
        super::log(&config);
        let sound = file::read(&self.clip, config.limits.file_seconds);
        let sound = sound.with_context(|| format!("cannot listen to {}", self.clip.display()))?;
        // nano was trained with its instruction on a line of its own behind the sound.
        let question = Some(format!("\n{}", self.question)).filter(|_| !self.question.is_empty());
        if let Some(server) = &self.target.server {
            return tokio::runtime::Runtime::new()?.block_on(self.remotely(server, sound, question));
        }
        let mut content = vec![Content::Sound(sound.into())];
        content.extend(question.map(Content::Text));
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
            calling: Calling::May,
            thinking: if budget.is_some() { Thinking::On } else { Thinking::Off },
            thinking_budget: budget.unwrap_or(0),
            pace: config.thinking.pace,
            max_reply_tokens: config.thinking.max_reply_tokens,
            sampling,
            words: false,
            ending: Ending::Known,
        };
        let engine = super::engine(&config)?;
        let mut turn = engine.respond(request)?;
        let mut terminal = Terminal::new(self.json);
        while let Some(event) = turn.blocking_next() {
            terminal.show(&event)?;
        }
        Ok(())
    }

    /// The same of a server, whose sampling is its own.
    async fn remotely(&self, server: &str, sound: Vec<f32>, question: Option<String>) -> Result<()> {
        anyhow::ensure!(!self.greedy, "--greedy is for a model here; a server draws as it is configured");
        let mut session = json!({"audio": {"input": {"turn_detection": null}}});
        if let Some(system) = &self.system {
            session["instructions"] = json!(system);
        }
        if self.no_thinking {
            session["reasoning"] = json!({"effort": "none"});
        }
        let mut remote = Remote::connect(server, &self.target, session, RATE).await?;
        let mut content = vec![json!({"type": "input_audio", "audio": STANDARD.encode(pcm16(sound))})];
        content.extend(question.map(|text| json!({"type": "input_text", "text": text})));
        let item = json!({"type": "message", "role": "user", "content": content});
        remote.send(json!({"type": "conversation.item.create", "item": item})).await?;
        remote.send(json!({"type": "response.create"})).await?;
        let mut terminal = Terminal::new(self.json);
        loop {
            let Some(event) = as_local(&remote.event().await?)? else { continue };
            terminal.show(&event)?;
            if matches!(event, Event::Done { .. }) {
                remote.close().await;
                return Ok(());
            }
        }
    }
}
