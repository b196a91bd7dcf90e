//! One connection's end of a session. The session may lose it and be given another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::listen::Marked;
use super::websocket::Goodbye;
use crate::audio::intake::Format;
use crate::audio::ring::Reader;
use crate::engine::Tenant;
use crate::journal::Journal;

/// Events with their numbers, as they were sent.
pub(super) type Frames = Vec<(u64, String)>;

/// A client that is there.
pub(super) struct Line {
    pub(super) ring: Reader,
    sound: Arc<Notify>,
    events: mpsc::Receiver<Marked>,
    /// The client has ended the conversation.
    said_goodbye: Arc<AtomicBool>,
    frames: mpsc::Sender<String>,
    goodbye: oneshot::Sender<Goodbye>,
    /// What its sound begins in.
    pub(super) format: Format,
    /// The client has the events up to this number and wants those after it.
    pub(super) after: Option<u64>,
    /// What it has missed is being read.
    reading: Option<JoinHandle<Frames>>,
    /// What it has missed and is yet to be sent.
    missed: VecDeque<String>,
}

/// What comes from a client.
pub(super) enum Said {
    Event(Marked),
    Sound,
    /// It is away: for ever, if it said goodbye.
    Gone {
        said_goodbye: bool,
    },
    /// It will be sent what the journal has up to this number.
    HasRead(u64),
    /// Some of that was sent.
    Nothing,
}

impl Line {
    pub(super) fn new(
        ring: Reader,
        sound: Arc<Notify>,
        events: mpsc::Receiver<Marked>,
        said_goodbye: Arc<AtomicBool>,
        frames: mpsc::Sender<String>,
        goodbye: oneshot::Sender<Goodbye>,
        format: Format,
    ) -> Self {
        let missed = VecDeque::new();
        Self { ring, sound, events, said_goodbye, frames, goodbye, format, after: None, reading: None, missed }
    }

    /// The next that the client says, or that is to be noted about what it missed; for ever when there is no client.
    pub(super) async fn next(line: &mut Option<Self>) -> Said {
        let Some(line) = line else { return std::future::pending().await };
        tokio::select! {
            event = line.events.recv() => match event {
                Some(event) => Said::Event(event),
                None => Said::Gone { said_goodbye: line.said_goodbye.load(Relaxed) },
            },
            () = line.sound.notified() => Said::Sound,
            frames = read(&mut line.reading) => {
                line.reading = None;
                let last = frames.last().map_or(0, |(number, _)| *number);
                line.missed = frames.into_iter().map(|(_, frame)| frame).collect();
                Said::HasRead(last)
            }
            room = line.frames.reserve(), if !line.missed.is_empty() => {
                match (room, line.missed.pop_front()) {
                    (Ok(room), Some(frame)) => room.send(frame),
                    // The connection is gone, which its events will say.
                    _ => line.missed.clear(),
                }
                Said::Nothing
            }
        }
    }

    /// An event that has come already.
    pub(super) fn queued(&mut self) -> Option<Marked> {
        self.events.try_recv().ok()
    }

    /// Has what the client missed read. What is told meanwhile has to wait.
    pub(super) fn catch_up(&mut self, journal: &Journal, tenant: Tenant, id: &str) {
        let Some(after) = self.after.take() else { return };
        let (journal, id) = (journal.clone(), id.to_owned());
        self.reading = Some(tokio::spawn(async move {
            match journal.missed(tenant, &id, after).await {
                Ok(frames) => frames.unwrap_or_default(),
                Err(error) => {
                    tracing::error!(%error, "what a client had missed cannot be read");
                    Frames::new()
                }
            }
        }));
    }

    /// Whether events that are told now can be sent now.
    pub(super) fn is_up_to_date(&self) -> bool {
        self.reading.is_none() && self.missed.is_empty()
    }

    /// Sends a frame, if there is room.
    pub(super) fn send(&self, frame: String) -> Result<(), TrySendError<String>> {
        self.frames.try_send(frame)
    }

    /// Ends the connection.
    pub(super) fn end(self, goodbye: Goodbye) {
        // Nobody listens where the wire has ended by itself.
        let _ = self.goodbye.send(goodbye);
    }
}

/// What a client missed, once it has been read; for ever where nothing is being read.
async fn read(reading: &mut Option<JoinHandle<Frames>>) -> Frames {
    match reading {
        // A panic there is a bug told elsewhere; the client misses what it missed.
        Some(reading) => reading.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}
