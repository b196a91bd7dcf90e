//! The engine on this machine: one compute thread that owns the model and everything it remembers.
//!
//! The thread blocks on its queue while nothing is to be done. While turns are live it takes what has come in, gathers every turn's next
//! tokens into one forward pass (`schedule`), scatters the results, and begins again. Memory of past turns lies in `slots`.

pub mod measure;
mod schedule;
mod slots;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as queue;
use std::time::Instant;

use hearken_models::checkpoint::{Checkpoint, Options};
use tokio::sync::mpsc;

use super::{Engine, EngineError, Event, Request, SessionId, Turn};
use schedule::Schedule;

/// Events a turn may be ahead of its reader.
const AHEAD: usize = 64;

/// How to start the engine.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// The checkpoint.
    pub path: PathBuf,
    /// `auto`, `cpu`, `cuda:N` or `metal`.
    pub device: String,
    /// Whether the words of the checkpoint's word ear stand beside the sound.
    pub words: bool,
    /// Turns that may be live at once; more are refused.
    pub turns: usize,
    /// Tokens of past conversations kept in memory.
    pub remembered_tokens: usize,
}

/// A request on its way to the compute thread.
struct Job {
    request: Request,
    events: mpsc::Sender<Event>,
    cancel: Arc<AtomicBool>,
    since: Instant,
}

enum Command {
    Respond(Box<Job>),
    Close(SessionId),
}

/// A handle to the compute thread.
#[derive(Debug)]
pub struct Local {
    commands: queue::Sender<Command>,
    live: Arc<AtomicUsize>,
    turns: usize,
    model: String,
}

impl Local {
    /// Loads the checkpoint, warms it up and starts the compute thread; returns when it can answer.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint or the device.
    pub fn start(options: LocalOptions) -> Result<Self, hearken_models::Error> {
        let (commands, inbox) = queue::channel();
        let (ready, is_ready) = queue::channel();
        let live = Arc::new(AtomicUsize::new(0));
        let (turns, counter) = (options.turns, live.clone());
        let thread = std::thread::Builder::new().name("compute".into());
        let spawned = thread.spawn(move || {
            let _guard = DeathGuard;
            match open(&options) {
                Err(e) => drop(ready.send(Err(e))),
                Ok(checkpoint) => {
                    drop(ready.send(Ok(checkpoint.name.clone())));
                    Schedule::new(checkpoint, options.remembered_tokens, counter).run(&inbox);
                }
            }
        });
        spawned.map_err(|e| hearken_models::Error::Input(format!("the compute thread cannot start: {e}")))?;
        let stopped = || Err(hearken_models::Error::Input("the compute thread ended while loading".into()));
        let model = is_ready.recv().unwrap_or_else(|_| stopped())?;
        Ok(Self { commands, live, turns, model })
    }
}

fn open(options: &LocalOptions) -> Result<Checkpoint, hearken_models::Error> {
    let device = hearken_models::device(&options.device)?;
    let mut checkpoint = Checkpoint::open(Path::new(&options.path), &Options { device, words: options.words })?;
    // The first pass pays for page faults and thread pools; better now than in somebody's first turn.
    let second = [0.0; 16_000];
    checkpoint.words(&second, || true)?;
    let mut cache = checkpoint.decoder.cache()?;
    for heard in checkpoint.hear(&second)? {
        let tokens = heard.embeddings.dim(0)?;
        let share = hearken_models::decoder::Share { cache: &mut cache, tokens };
        checkpoint.decoder.logits(&checkpoint.decoder.forward(&heard.embeddings, &mut [share])?)?;
    }
    Ok(checkpoint)
}

/// Invariant I6: the process does not outlive its compute thread.
struct DeathGuard;

impl Drop for DeathGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the compute thread has died; the process ends, since nothing can be answered any more");
            eprintln!("hearken: the compute thread has died; this is a bug, please report what stands above");
            std::process::exit(70);
        }
    }
}

impl Engine for Local {
    fn model(&self) -> &str {
        &self.model
    }

    fn respond(&self, request: Request) -> Result<Turn, EngineError> {
        if request.conversation.is_empty() {
            return Err(EngineError::Empty("the conversation has no items"));
        }
        let admitted =
            self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < self.turns).then_some(n + 1));
        if let Err(waiting) = admitted {
            return Err(EngineError::Overloaded { waiting });
        }
        let (turn, events, cancel) = Turn::channel(AHEAD);
        let job = Job { request, events, cancel, since: Instant::now() };
        if self.commands.send(Command::Respond(Box::new(job))).is_err() {
            return Err(EngineError::Stopped);
        }
        Ok(turn)
    }

    fn close(&self, session: SessionId) {
        // A stopped thread has forgotten everything already.
        drop(self.commands.send(Command::Close(session)));
    }
}
