//! The compute thread's loop: gather every live turn's next tokens, one forward pass, scatter.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use hearken_models::checkpoint::Checkpoint;
use hearken_models::decoder::Share;
use hearken_models::{Result, Tensor};

use super::slots::{Slot, Slots};
use super::turn::Live;
use super::{Command, Job};
use crate::engine::Finish;

/// Prompt tokens that go through with others' decode steps: what a newcomer may cost them per token.
const CHUNK: usize = 64;
/// Prompt tokens of one pass when nobody is decoding.
const CHUNK_ALONE: usize = 512;
/// When every reader lags behind, look again after this long.
const LAG: Duration = Duration::from_millis(2);

/// Everything the compute thread owns.
pub(super) struct Schedule {
    checkpoint: Checkpoint,
    slots: Slots,
    live: Vec<Live>,
    /// Turns admitted and not ended, shared with the handle that admits.
    counter: Arc<AtomicUsize>,
}

impl Schedule {
    pub(super) fn new(checkpoint: Checkpoint, remembered: usize, counter: Arc<AtomicUsize>) -> Self {
        Self { checkpoint, slots: Slots::new(remembered), live: Vec::new(), counter }
    }

    /// Runs until every handle is gone and nothing is live.
    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            if !self.receive(inbox) && self.live.is_empty() {
                return;
            }
            self.cancel(Live::is_cancelled);
            let ready = self.ready();
            if !ready.is_empty() {
                self.step(&ready);
            } else if !self.live.is_empty() {
                match inbox.recv_timeout(LAG) {
                    Ok(command) => self.command(command),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                }
            }
        }
    }

    /// Takes all commands that have come in, waiting for one when nothing is live; `false` when none can come any more.
    fn receive(&mut self, inbox: &Receiver<Command>) -> bool {
        if self.live.is_empty() {
            match inbox.recv() {
                Ok(command) => self.command(command),
                Err(_) => return false,
            }
        }
        loop {
            match inbox.try_recv() {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Respond(job) => self.begin(*job),
            Command::Close(session) => {
                self.cancel(|turn| turn.session == session);
                self.slots.forget(session);
            }
        }
    }

    fn begin(&mut self, job: Job) {
        let session = job.request.session;
        // A session has one turn at a time: the newer one wins, whatever order the cancel arrived in.
        self.cancel(|turn| turn.session == session);
        let slot = self.slots.take(session).map(Ok).unwrap_or_else(|| self.empty());
        let begun = match slot {
            Ok(slot) => Live::begin(job, slot, &mut self.checkpoint),
            Err(e) => {
                let failed = crate::engine::Event::Failed(crate::engine::EngineError::Model(e.to_string()));
                drop(job.events.try_send(failed));
                Err(super::turn::Refused)
            }
        };
        match begun {
            Ok(turn) => self.live.push(turn),
            Err(_) => self.ended(),
        }
    }

    fn empty(&self) -> Result<Slot> {
        Ok(Slot { cache: self.checkpoint.decoder.cache()?, units: Vec::new(), words: Default::default() })
    }

    fn ended(&self) {
        self.counter.fetch_sub(1, Ordering::AcqRel);
    }

    /// Ends the turns that are done, and of the others those that match.
    fn cancel(&mut self, which: impl Fn(&Live) -> bool) {
        for turn in &mut self.live {
            if turn.finish.is_none() && which(turn) {
                turn.finish = Some(Finish::Cancelled);
            }
        }
        let mut i = 0;
        while i < self.live.len() {
            let Some(finish) = self.live[i].finish else {
                i += 1;
                continue;
            };
            let (session, slot) = self.live.swap_remove(i).end(finish);
            self.slots.put(session, slot);
            self.ended();
        }
    }

    /// The turns whose readers keep up.
    fn ready(&mut self) -> Vec<usize> {
        (0..self.live.len()).filter(|i| self.live[*i].flush()).collect()
    }

    /// One forward pass over the next rows of all ready turns.
    fn step(&mut self, ready: &[usize]) {
        let decoding = ready.iter().any(|i| self.live[*i].is_decoding());
        let mut budget = if decoding { CHUNK } else { CHUNK_ALONE };
        let mut rows: Vec<(usize, Tensor)> = Vec::new();
        let mut failed = Vec::new();
        for &i in ready {
            let most = if self.live[i].is_decoding() { usize::MAX } else { budget };
            if most == 0 {
                continue;
            }
            match self.live[i].take_rows(most) {
                Ok(Some(next)) => {
                    if !self.live[i].is_decoding() {
                        budget -= next.dims()[0].min(budget);
                    }
                    rows.push((i, next));
                }
                Ok(None) => self.live[i].finish = Some(Finish::Stop),
                Err(e) => failed.push((i, e.to_string())),
            }
        }
        failed.extend(self.forward(&rows));
        failed.sort_unstable_by_key(|(i, _)| std::cmp::Reverse(*i));
        for (i, error) in failed {
            self.live.swap_remove(i).refuse(error);
            self.ended();
        }
    }

    /// Puts these rows through the decoder and draws where a turn's rows are at an end; which turns failed, and why.
    fn forward(&mut self, rows: &[(usize, Tensor)]) -> Vec<(usize, String)> {
        let logits = match self.logits(rows) {
            Ok(logits) => logits,
            // Which of them is at fault is told by running each alone, as long as no cache has taken its rows yet.
            Err(_) if rows.len() > 1 && rows.iter().all(|(i, _)| self.live[*i].slot.is_behind()) => {
                return rows.chunks(1).flat_map(|row| self.forward(row)).collect();
            }
            Err(e) => return rows.iter().map(|(i, _)| (*i, e.to_string())).collect(),
        };
        let draw = |(i, mut logits): (usize, Vec<f32>)| {
            let drawn = self.live[i].draw(&self.checkpoint, &mut logits);
            drawn.err().map(|e| (i, e.to_string()))
        };
        logits.into_iter().filter_map(draw).collect()
    }

    /// One pass: the logits behind the last row of each turn that has no further rows waiting.
    fn logits(&mut self, rows: &[(usize, Tensor)]) -> Result<Vec<(usize, Vec<f32>)>> {
        let tensors: Vec<&Tensor> = rows.iter().map(|(_, t)| t).collect();
        let x = match tensors[..] {
            [] => return Ok(Vec::new()),
            [only] => only.clone(),
            _ => Tensor::cat(&tensors, 0)?,
        };
        let mut shares = Vec::with_capacity(rows.len());
        let mut next = rows.iter().peekable();
        for (i, turn) in self.live.iter_mut().enumerate() {
            if let Some((_, tensor)) = next.next_if(|(at, _)| *at == i) {
                shares.push(Share { cache: &mut turn.slot.cache, tokens: tensor.dims()[0] });
            }
        }
        let hidden = self.checkpoint.decoder.forward(&x, &mut shares)?;
        let mut last = Vec::new();
        let mut at = 0;
        for (i, tensor) in rows {
            at += tensor.dims()[0];
            if self.live[*i].wants_logits() {
                last.push((*i, at as u32 - 1));
            }
        }
        if last.is_empty() {
            return Ok(Vec::new());
        }
        let index: Vec<u32> = last.iter().map(|(_, row)| *row).collect();
        let picked = hidden.index_select(&Tensor::new(index, hidden.device())?, 0)?;
        let logits = self.checkpoint.decoder.logits(&picked)?.to_vec2::<f32>()?;
        Ok(last.into_iter().map(|(i, _)| i).zip(logits).collect())
    }
}
