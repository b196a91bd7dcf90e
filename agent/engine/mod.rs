//! What a session may ask of whatever computes: one trait with no candle in it.
//!
//! A session hands over the whole conversation at each turn, so an engine may forget everything at any time. What it remembers is a prefix
//! of the conversation in its KV, found again by content: token ids, and for sound the samples themselves. [`Engine::listen`] makes use of
//! that: it writes a turn that is still being spoken into the KV, so that [`Engine::respond`] finds all but the last of it done. A turn is a
//! fork of that prefix; several may be live in one session (a speculative one while the speaker pauses, say), and none changes another.
//! Behind the trait stands [`local`] (one compute thread on this machine); a cluster engine can stand there as well.

pub mod ears;
pub mod local;
pub mod minds;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use hearken_models::kv::KvType;
pub use hearken_models::prompt::{Content, Item, Role, Thinking};
pub use hearken_models::sampler::Sampling;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Names a session towards the engine, so that its prefix can be found again. Never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub u64);

/// Whose sessions may share what they have in common, such as a system prompt. Two tenants never share, not even by timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tenant(pub u64);

/// When the reply may begin. Source: MODEL "Mind-Paced Speaking" (arXiv 2510.09592).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// All reasoning comes before the reply.
    #[default]
    ThinkBefore,
    /// The reply begins after the first segment of the reasoning, and both go on side by side.
    ThinkFirst,
    /// The reply begins at once; the reasoning goes on beside it.
    SpeakFirst,
}

/// Whether a function is to be called, where there are any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Calling {
    /// As the model likes.
    #[default]
    May,
    /// One must be.
    Must,
    /// This one must be.
    This(String),
}

/// Whether the model is asked if the user has finished ([`Event::Finished`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// No.
    #[default]
    Known,
    /// Beside the answer, on a fork of what was heard.
    Asked,
    /// And nothing else is: the turn ends with that, unanswered.
    AskedAlone,
}

/// One turn to compute.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose prefix to go on from.
    pub session: SessionId,
    /// With whom it may be shared.
    pub tenant: Tenant,
    /// The whole conversation; its last item is what is answered.
    pub conversation: Vec<Item>,
    /// JSON array of function schemas, or empty.
    pub tools: String,
    /// Whether one of them must be called.
    pub calling: Calling,
    /// Whether to reason first.
    pub thinking: Thinking,
    /// Reasoning is closed after this many tokens.
    pub thinking_budget: usize,
    /// When the reply may begin.
    pub pace: Pace,
    /// The reply ends after this many tokens.
    pub max_reply_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Whether the words of the newest sound are wanted ([`Event::Heard`]). A word ear tells them in any case; without one the model itself is
    /// asked, on a fork.
    pub words: bool,
    /// Whether it is asked if the user has finished.
    pub ending: Ending,
}

/// Why a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// A token limit was reached.
    Length,
    /// The session dropped the [`Turn`].
    Cancelled,
}

/// What a turn cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Text tokens of the prompt.
    pub text_tokens: usize,
    /// Sound tokens of the prompt, 12.5 a second.
    pub sound_tokens: usize,
    /// Of both, how many were still in the session's KV.
    pub cached_tokens: usize,
    /// Of those, sound.
    pub cached_sound_tokens: usize,
    /// Tokens of reasoning written.
    pub reasoning_tokens: usize,
    /// Tokens of reply written.
    pub reply_tokens: usize,
}

/// Where a turn's time went, measured on the compute thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Waiting for the compute thread.
    pub queued: Duration,
    /// Mel, encoder, adaptor.
    pub encode: Duration,
    /// The word ear, where the checkpoint has one.
    pub words: Duration,
    /// Prompt tokens through the decoder.
    pub prefill: Duration,
    /// Reasoning tokens.
    pub think: Duration,
    /// Reply tokens.
    pub reply: Duration,
}

/// What a turn streams: `Reasoning*`, (`Reply` | `CallDelta`* `ToolCall`)*, then `Done` or `Failed`. `Heard` and `Finished` come once and before `Done`,
/// wherever they are known; with another [`Pace`] than [`Pace::ThinkBefore`], reasoning and reply come side by side.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The words of the newest sound: from the checkpoint's word ear, or from the model itself where there is none and they were wanted.
    Heard(String),
    /// How likely it is that the user has said all and does not merely pause, 0..=1, where that was [asked](Request::ending).
    Finished(f32),
    /// More reasoning text.
    Reasoning(String),
    /// More reply text.
    Reply(String),
    /// More of the arguments of a call that is being written: all of them are told so, or none before the call is whole.
    CallDelta {
        /// The function's name.
        name: String,
        /// More JSON text.
        delta: String,
    },
    /// The model calls a function.
    ToolCall {
        /// The function's name.
        name: String,
        /// JSON text, all of it.
        arguments: String,
    },
    /// The turn is over.
    Done {
        /// Why.
        finish: Finish,
        /// Its cost.
        usage: Usage,
        /// Its times.
        timings: Timings,
    },
    /// The turn could not be computed.
    Failed(EngineError),
}

/// A turn that is still being spoken.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Whose it is.
    pub session: SessionId,
    /// With whom its prefix may be shared.
    pub tenant: Tenant,
    /// All that was said before, and last the user's message with the sound of it heard so far, which may be empty.
    pub conversation: Vec<Item>,
    /// As [`Request::tools`].
    pub tools: String,
    /// Whether [`Caption`]s are wanted.
    pub captions: bool,
}

/// What is being said, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caption {
    /// To be added to what was committed before; never taken back.
    pub committed: String,
    /// What seems to follow; the next caption replaces it.
    pub tentative: String,
    /// The sound has ended and this is all that was said.
    pub is_last: bool,
}

/// An open ear. Dropping it ends the listening; what was heard stays in the prefix.
#[derive(Debug)]
pub struct Listening {
    captions: mpsc::Receiver<Caption>,
    feed: Box<dyn Feed>,
}

/// Takes the samples of an open ear.
pub trait Feed: Send + Sync + std::fmt::Debug {
    /// Takes the next 16 kHz samples, or says how many found no room. It never waits.
    fn push(&self, samples: &[f32]) -> usize;

    /// No more samples will come.
    fn finish(&self);
}

impl Listening {
    /// An open ear and the engine's end of its captions. `capacity` captions may be waiting for their reader.
    pub fn channel(feed: Box<dyn Feed>, capacity: usize) -> (Self, mpsc::Sender<Caption>) {
        let (tx, captions) = mpsc::channel(capacity);
        (Self { captions, feed }, tx)
    }

    /// For two who share an ear: the end that takes samples, which ends the listening when it is dropped, and the one that captions come out of.
    pub fn split(self) -> (Box<dyn Feed>, mpsc::Receiver<Caption>) {
        (self.feed, self.captions)
    }

    /// Hands the next samples over, 16 kHz mono. Those that find no room (their number is returned) are lost to this ear and close it, but not
    /// to the turn: [`Engine::respond`] brings all samples and computes what is missing.
    pub fn push(&self, samples: &[f32]) -> usize {
        self.feed.push(samples)
    }

    /// The sound ends here: the captions that are left come, all of their text committed and the last one marked. For a turn that nobody answers; a
    /// [`Engine::respond`] tells the words itself, and needs no more than that the ear is dropped.
    pub fn finish(&self) {
        self.feed.finish();
    }

    /// The next caption; `None` when no more come.
    pub async fn next(&mut self) -> Option<Caption> {
        self.captions.recv().await
    }

    /// As [`Listening::next`], for threads outside the runtime.
    pub fn blocking_next(&mut self) -> Option<Caption> {
        self.captions.blocking_recv()
    }
}

/// Why the engine refuses or fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Too many turns wait already. Try again later.
    #[error("the engine is busy: {waiting} turns are waiting")]
    Overloaded {
        /// How many wait.
        waiting: usize,
    },
    /// The conversation is longer than the model's context.
    #[error("the conversation has {tokens} tokens; the model holds {limit}")]
    ContextFull {
        /// What it would need.
        tokens: usize,
        /// What there is.
        limit: usize,
    },
    /// A turn with nothing to answer.
    #[error("the request is empty: {0}")]
    Empty(&'static str),
    /// The compute thread is gone; the process is ending.
    #[error("the engine has stopped")]
    Stopped,
    /// The model failed on this turn.
    #[error("the model failed: {0}")]
    Model(String),
}

/// A turn under way. Dropping it cancels it within one token.
#[derive(Debug)]
pub struct Turn {
    events: mpsc::Receiver<Event>,
    cancel: Arc<AtomicBool>,
}

impl Turn {
    /// A turn and the engine's end of it: where to send events, and the flag that tells when nobody wants them any more.
    /// The channel holds `capacity` events; an engine that finds it full waits with this turn and goes on with others.
    pub fn channel(capacity: usize) -> (Self, mpsc::Sender<Event>, Arc<AtomicBool>) {
        let (tx, events) = mpsc::channel(capacity);
        let cancel = Arc::new(AtomicBool::new(false));
        (Self { events, cancel: cancel.clone() }, tx, cancel)
    }

    /// The next event; `None` after `Done` or `Failed`, or when the engine died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Nothing more is wanted of it but its [`Event::Done`], which tells what it cost.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
    }

    /// As [`Turn::next`], for threads outside the runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What computes.
pub trait Engine: Send + Sync + 'static {
    /// The checkpoint's name, for `/v1/models` and session objects.
    fn model(&self) -> &str;

    /// Starts a turn. Returns at once; refuses instead of waiting.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] when the queue is full, [`EngineError::Stopped`] when the compute thread is gone.
    fn respond(&self, request: Request) -> Result<Turn, EngineError>;

    /// Hears a turn while it is being spoken. Returns at once. With no sound to come it prepares: a conversation that was changed
    /// (compacted, for one) is in the KV before its next turn.
    ///
    /// # Errors
    /// As [`Engine::respond`].
    fn listen(&self, listen: Listen) -> Result<Listening, EngineError>;

    /// Forgets a session's prefix and gives its memory back.
    fn close(&self, session: SessionId);
}
