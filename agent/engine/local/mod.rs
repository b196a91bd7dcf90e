//! The engine on this machine: one compute thread that owns the model and everything it remembers.
//!
//! The thread blocks on its queue while nothing is to be done. Else it takes what has come in, hears a slice of the sounds that wait, gathers
//! the next tokens of all turns and open ears into one forward pass (`schedule`), scatters the results, and begins again. An open ear
//! (`listener`) writes a turn that is being spoken into its session's `track`; a `turn` is a fork of that. Between turns the track rests in
//! the session's `memory`, until its blocks are needed elsewhere.

mod call;
mod judge;
mod listener;
pub mod measure;
mod memory;
mod prompt;
mod reader;
mod schedule;
mod schema;
mod track;
mod turn;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as queue;
use std::time::Instant;

use hearken_models::checkpoint::{Checkpoint, Options, SEGMENT};
use hearken_models::kv::Pool;
use tokio::sync::mpsc;

use super::{Caption, Engine, EngineError, Event, KvType, Listen, Listening, Request, SessionId, Turn};
use listener::{Inlet, Outside};
use schedule::{Counters, Schedule};

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
    /// How keys and values are stored, on a CPU.
    pub kv: KvType,
    /// Whether all live sequences go through the decoder together; one by one is for comparison.
    pub batched: bool,
}

/// A request on its way to the compute thread.
struct Job {
    request: Request,
    events: mpsc::Sender<Event>,
    cancel: Arc<AtomicBool>,
    since: Instant,
}

/// Whether nobody waits for it any more.
fn is_unwanted(job: &Job) -> bool {
    job.cancel.load(Ordering::Acquire) || job.events.is_closed()
}

/// An ear to be opened.
struct Ear {
    listen: Listen,
    inlet: Arc<Inlet>,
    captions: mpsc::Sender<Caption>,
}

enum Command {
    Respond(Box<Job>),
    Listen(Box<Ear>),
    /// Something has come in beside the queue.
    Wake,
    Close(SessionId),
}

/// A handle to the compute thread.
#[derive(Debug)]
pub struct Local {
    commands: queue::Sender<Command>,
    counters: Counters,
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
        let counters = Counters::default();
        let (turns, shared) = (options.turns, counters.clone());
        let thread = std::thread::Builder::new().name("compute".into());
        let spawned = thread.spawn(move || {
            let _guard = DeathGuard;
            match open(&options) {
                Err(e) => drop(ready.send(Err(e))),
                Ok((checkpoint, pool)) => {
                    drop(ready.send(Ok(checkpoint.name.clone())));
                    Schedule::new(checkpoint, pool, shared, options.batched).run(&inbox);
                }
            }
        });
        spawned.map_err(|e| hearken_models::Error::Input(format!("the compute thread cannot start: {e}")))?;
        let stopped = || Err(hearken_models::Error::Input("the compute thread ended while loading".into()));
        let model = is_ready.recv().unwrap_or_else(|_| stopped())?;
        Ok(Self { commands, counters, turns, model })
    }
}

impl Local {
    /// One more of what is counted there, if there may be.
    fn admit(&self, counter: &AtomicUsize) -> Result<(), EngineError> {
        let more = |n| (n < self.turns).then_some(n + 1);
        match counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(()),
            Err(waiting) => Err(EngineError::Overloaded { waiting }),
        }
    }
}

fn open(options: &LocalOptions) -> Result<(Checkpoint, Pool), hearken_models::Error> {
    let device = hearken_models::device(&options.device)?;
    let checkpoint = Checkpoint::open(Path::new(&options.path), &Options { device, words: options.words })?;
    // The first pass pays for page faults and thread pools; better now than in somebody's first turn.
    let second = [0.0; 16_000];
    checkpoint.words(&second, || true)?;
    let context = checkpoint.decoder.config().max_position_embeddings;
    let pool = checkpoint.decoder.pool(options.remembered_tokens + context.min(32_768), options.kv)?;
    let mut sequence = pool.sequence();
    for heard in checkpoint.hear(&second)? {
        let tokens = heard.embeddings.dim(0)?;
        let share = hearken_models::decoder::Share { sequence: &mut sequence, tokens };
        checkpoint.decoder.logits(&checkpoint.decoder.forward(&heard.embeddings, &mut [share])?)?;
    }
    Ok((checkpoint, pool))
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
        self.admit(&self.counters.turns)?;
        let (turn, events, cancel) = Turn::channel(AHEAD);
        let job = Job { request, events, cancel, since: Instant::now() };
        if self.commands.send(Command::Respond(Box::new(job))).is_err() {
            return Err(EngineError::Stopped);
        }
        Ok(turn)
    }

    fn listen(&self, listen: Listen) -> Result<Listening, EngineError> {
        self.admit(&self.counters.ears)?;
        let inlet = Arc::new(Inlet::new(self.commands.clone(), SEGMENT));
        let (listening, captions) = Listening::channel(Box::new(Outside(inlet.clone())), AHEAD);
        if self.commands.send(Command::Listen(Box::new(Ear { listen, inlet, captions }))).is_err() {
            return Err(EngineError::Stopped);
        }
        Ok(listening)
    }

    fn close(&self, session: SessionId) {
        // A stopped thread has forgotten everything already.
        drop(self.commands.send(Command::Close(session)));
    }
}

#[cfg(test)]
mod tests {
    use super::DeathGuard;

    /// Dies as a compute thread with a bug would; run by the test below, in a process of its own.
    #[test]
    #[ignore = "ends the process"]
    fn a_compute_thread_dies() {
        let thread = std::thread::spawn(|| {
            let _guard = DeathGuard;
            panic!("a bug, on purpose");
        });
        drop(thread.join());
        println!("still here");
    }

    #[test]
    fn i6_the_process_does_not_outlive_its_compute_thread() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
        child.args(["--exact", "engine::local::tests::a_compute_thread_dies", "--ignored", "--nocapture"]);
        let ended = child.output().expect("the program can be run again");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(70), "{said}");
        assert!(said.contains("a bug, on purpose") && said.contains("the compute thread has died"), "{said}");
        assert!(!String::from_utf8_lossy(&ended.stdout).contains("still here"));
    }
}
