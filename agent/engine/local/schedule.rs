//! The compute thread's loop: take in what has come, hear, gather every track's next tokens, one forward pass, scatter.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use hearken_models::checkpoint::Checkpoint;
use hearken_models::decoder::Share;
use hearken_models::kv::{Pool, Salt};
use hearken_models::{DType, Result, Tensor};

use super::listener::Listener;
use super::memory::Memories;
use super::track::Track;
use super::turn::{Branch, Live, Plan};
use super::{Command, Ear, Job};
use crate::engine::{EngineError, Event, SessionId};

/// Prompt tokens that go through with others' decode steps: what a newcomer may cost them per token.
const CHUNK: usize = 64;
/// Prompt tokens of one pass when nobody is decoding.
const CHUNK_ALONE: usize = 512;
/// Words read between two passes.
const READS: usize = 3;
/// Blocks a listener must find free beyond its prefix: a segment's worth.
const SEGMENT_BLOCKS: usize = 11;
/// When every reader lags behind, look again after this long.
const LAG: Duration = Duration::from_millis(2);

/// What has come in and is not begun.
enum Arrival {
    Turn(Job),
    Ear(Ear),
}

impl Arrival {
    fn session(&self) -> SessionId {
        match self {
            Self::Turn(job) => job.request.session,
            Self::Ear(ear) => ear.listen.session,
        }
    }
}

/// Whose rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Turn(usize, Branch),
    Listener(usize),
    /// What reads the words of a listener's sound.
    Reader(usize),
}

/// Handles' counts of what is admitted and not ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    pub(super) turns: Arc<AtomicUsize>,
    pub(super) ears: Arc<AtomicUsize>,
}

/// Everything the compute thread owns.
pub(super) struct Schedule {
    model: Checkpoint,
    pool: Pool,
    memories: Memories,
    arrivals: Vec<Arrival>,
    live: Vec<Live>,
    listeners: Vec<Listener>,
    /// Whose turn it is to be heard first.
    first: usize,
    counters: Counters,
    /// Whether rows of different tracks share a pass.
    batched: bool,
}

impl Schedule {
    pub(super) fn new(model: Checkpoint, pool: Pool, counters: Counters, batched: bool) -> Self {
        Self {
            model,
            pool,
            memories: Memories::default(),
            arrivals: Vec::new(),
            live: Vec::new(),
            listeners: Vec::new(),
            first: 0,
            counters,
            batched,
        }
    }

    /// Runs until every handle is gone and no turn is live.
    pub(super) fn run(mut self, inbox: &Receiver<Command>) {
        let mut idle = true;
        loop {
            let is_open = self.receive(inbox, idle);
            if !is_open && self.live.is_empty() && self.arrivals.is_empty() {
                return;
            }
            self.cancel(Live::is_cancelled);
            self.begin();
            // After the new ones began: what woke this thread for them may have been taken from the queue already, and nobody wakes it twice.
            self.listeners.iter_mut().for_each(Listener::receive);
            let heard = self.hear();
            let read = self.read();
            let stepped = self.step();
            self.end_listeners();
            idle = !(heard || read || stepped);
        }
    }

    /// Takes all commands that have come in, waiting for one when there is nothing to do; `false` when none can come any more.
    fn receive(&mut self, inbox: &Receiver<Command>, idle: bool) -> bool {
        if idle && self.live.is_empty() && self.arrivals.is_empty() {
            match inbox.recv() {
                Ok(command) => self.command(command),
                Err(_) => return false,
            }
        } else if idle {
            match inbox.recv_timeout(LAG) {
                Ok(command) => self.command(command),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
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
            Command::Respond(job) => self.arrivals.push(Arrival::Turn(*job)),
            Command::Listen(ear) => {
                // A session has one open ear: the newer one.
                self.listeners.iter().filter(|l| l.session == ear.listen.session).for_each(Listener::close);
                self.arrivals.push(Arrival::Ear(*ear));
            }
            Command::Wake => {}
            Command::Close(session) => {
                self.cancel(|turn| turn.session == session);
                for arrival in self.arrivals.extract_if(.., |arrival| arrival.session() == session) {
                    self.counters.ended(&arrival);
                }
                let before = self.listeners.len();
                self.listeners.retain(|listener| listener.session != session);
                self.counters.ears.fetch_sub(before - self.listeners.len(), Ordering::AcqRel);
                self.memories.forget(session);
            }
        }
    }

    /// Begins what has come in, but for sessions whose open ear has not done with its sound yet: what comes next goes on from that.
    fn begin(&mut self) {
        for arrival in std::mem::take(&mut self.arrivals) {
            let listener = self.listeners.iter().find(|l| l.session == arrival.session());
            let waits = match arrival {
                Arrival::Turn(_) => listener.is_some_and(|l| !l.is_drained()),
                Arrival::Ear(_) => listener.is_some(),
            };
            match arrival {
                Arrival::Turn(job) if super::is_unwanted(&job) => self.counters.ended(&Arrival::Turn(job)),
                _ if waits => self.arrivals.push(arrival),
                Arrival::Turn(job) => self.begin_turn(job),
                Arrival::Ear(ear) => self.begin_ear(ear),
            }
        }
    }

    fn begin_turn(&mut self, job: Job) {
        let events = job.events.clone();
        let names = &mut self.memories.of(job.request.session).names;
        let begun = Plan::new(&self.model, &job.request, names).and_then(|plan| self.admit(job, plan));
        match begun {
            Ok(turn) => self.live.push(turn),
            Err(error) => {
                // The first event of its channel always has room.
                drop(events.try_send(Event::Failed(error)));
                self.counters.turns.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// A fork of what the session's prefix and the plan have in common, if the pool has room for the rest.
    fn admit(&mut self, job: Job, plan: Plan) -> std::result::Result<Live, EngineError> {
        let (session, salt) = (job.request.session, Salt(job.request.tenant.0));
        // The last token is always computed again: its logits are what the turn begins with.
        let wanted = &plan.units[..plan.units.len().saturating_sub(1)];
        let listener = self.listeners.iter().find(|l| l.session == session && l.salt == salt);
        let memory = self.memories.of(session);
        let bases = listener.map(|l| &l.track).into_iter().chain(&memory.track);
        let mut track = bases.max_by_key(|t| t.common(wanted)).map_or_else(|| Track::new(&self.pool), Track::fork);
        let kept = track.keep(salt, wanted);
        let tokens = plan.tokens;
        let memory = self.memories.of(session);
        let ears = listener.and_then(Listener::ears).or(memory.ears.as_ref());
        let turn = Live::begin(&self.model, job, plan, (track, kept), ears, memory);
        // Its own branches', too: reader, judge and mouth.
        if !self.memories.make_room(&self.pool, turn.promised(), promised(&self.live)) {
            return Err(match self.live.len() + self.listeners.len() {
                0 => EngineError::ContextFull { tokens, limit: self.pool.tokens() },
                waiting => EngineError::Overloaded { waiting },
            });
        }
        Ok(turn)
    }

    fn begin_ear(&mut self, ear: Ear) {
        let memory = self.memories.of(ear.listen.session);
        let track = memory.track.take().unwrap_or_else(|| Track::new(&self.pool));
        let (heard, names, ends) = (memory.ears.as_ref(), &mut memory.names, (ear.inlet, ear.captions));
        let begun = Listener::begin(&self.model, &ear.listen, track, heard, names, ends);
        match begun {
            Ok(listener)
                if self.memories.make_room(&self.pool, listener.blocks() + SEGMENT_BLOCKS, promised(&self.live)) =>
            {
                self.listeners.push(listener);
            }
            // The session sees the captions end; its turn brings the sound all the same.
            _ => drop(self.counters.ears.fetch_sub(1, Ordering::AcqRel)),
        }
    }

    /// Ends the turns that are done, and of the others those that match.
    fn cancel(&mut self, which: impl Fn(&Live) -> bool) {
        for turn in &mut self.live {
            if !turn.is_over() && which(turn) {
                turn.give_up();
            }
        }
        let mut i = 0;
        while i < self.live.len() {
            let Some(finish) = self.live[i].finish.filter(|_| self.live[i].is_over()) else {
                i += 1;
                continue;
            };
            let turn = self.live.remove(i);
            turn.publish();
            let (session, track) = turn.end(finish);
            self.counters.turns.fetch_sub(1, Ordering::AcqRel);
            let is_heard = self.listeners.iter().any(|listener| listener.session == session);
            let memory = self.memories.of(session);
            // An open ear's own track is ahead of what a turn of its session leaves.
            if !is_heard {
                memory.track = Some(track);
            }
        }
    }

    /// Closes the ears that their sessions have closed, and keeps what they heard.
    fn end_listeners(&mut self) {
        for listener in self.listeners.extract_if(.., |listener| listener.is_over()) {
            self.counters.ears.fetch_sub(1, Ordering::AcqRel);
            let session = listener.session;
            listener.track.publish(listener.salt);
            let memory = self.memories.of(session);
            let (track, ears, words) = listener.end();
            memory.track = Some(track);
            // A prefix that was only prepared has heard nothing.
            memory.ears = ears.or(memory.ears.take());
            if let Some((name, words)) = words {
                memory.remember_words(name, words);
            }
        }
    }

    /// Hears a slice of the sounds that wait; only one while somebody waits for the next token. Whether there was any.
    fn hear(&mut self) -> bool {
        let decoding = self.live.iter().any(Live::is_decoding);
        let (turns, all) = (self.live.len(), self.live.len() + self.listeners.len());
        let mut heard = false;
        let mut failed = Vec::new();
        for n in 0..all {
            let i = (self.first + n) % all;
            let done = match i.checked_sub(turns) {
                None if self.live[i].has_sound() => self.live[i].hear(&self.model),
                Some(l) if self.listeners[l].has_sound() => self.listeners[l].hear(&self.model),
                _ => continue,
            };
            heard = true;
            if let Err(e) = done {
                failed.push((
                    if i < turns { Whose::Turn(i, Branch::Mind) } else { Whose::Listener(i - turns) },
                    e.to_string(),
                ));
            }
            if decoding {
                self.first = i + 1;
                break;
            }
        }
        self.fail(failed);
        heard
    }

    /// Reads some of the words that were heard, no more at once than a token takes: somebody may cancel, or begin. Whether there were any.
    fn read(&mut self) -> bool {
        let mut read = false;
        let mut failed = Vec::new();
        for (i, turn) in self.live.iter_mut().enumerate() {
            for _ in 0..READS {
                match turn.read(&self.model, self.memories.of(turn.session)) {
                    Ok(true) => read = true,
                    Ok(false) => break,
                    Err(e) => {
                        failed.push((Whose::Turn(i, Branch::Mind), e.to_string()));
                        break;
                    }
                }
            }
        }
        for (i, listener) in self.listeners.iter_mut().enumerate() {
            // A turn's own reading of the same sound comes first; captions go on when it is over.
            if self.live.iter().any(|turn| turn.session == listener.session) {
                continue;
            }
            for _ in 0..READS {
                match listener.read(&self.model) {
                    Ok(true) => read = true,
                    Ok(false) => break,
                    Err(e) => {
                        failed.push((Whose::Listener(i), e.to_string()));
                        break;
                    }
                }
            }
        }
        self.fail(failed);
        read
    }

    /// One forward pass over the next rows of all tracks whose readers keep up; `false` when there were none.
    fn step(&mut self) -> bool {
        let mut waiting: Vec<(Whose, usize)> = Vec::new();
        for (i, turn) in self.live.iter_mut().enumerate() {
            if !turn.is_over() && turn.flush() {
                let branches: Vec<_> = turn.branches().collect();
                waiting.extend(branches.into_iter().map(|(branch, rows)| (Whose::Turn(i, branch), rows)));
            }
        }
        let heard = self.listeners.iter().enumerate().flat_map(|(i, l)| {
            let asked = l.reader.as_ref().map_or(0, |reader| reader.track.waiting());
            [(Whose::Listener(i), l.track.waiting()), (Whose::Reader(i), asked)]
        });
        waiting.extend(heard.filter(|(_, rows)| *rows > 0));
        let decodes = |whose: &Whose| matches!(whose, Whose::Turn(i, _) if self.live[*i].is_decoding());
        let decoding = waiting.iter().any(|(whose, _)| decodes(whose));
        let budget = if decoding { CHUNK } else { CHUNK_ALONE };
        let fill = waiting.iter().map(|(whose, rows)| if decodes(whose) { None } else { Some(*rows) });
        let shares = fair(&fill.collect::<Vec<_>>(), budget);
        let mut rows: Vec<(Whose, Tensor)> = Vec::new();
        let mut failed = Vec::new();
        for ((whose, all), share) in waiting.into_iter().zip(shares) {
            let most = share.unwrap_or(all);
            let taken = match whose {
                Whose::Turn(i, branch) => self.live[i].take(branch, most),
                Whose::Listener(i) => self.listeners[i].take(most),
                Whose::Reader(i) => self.listeners[i].reader.as_mut().map_or(Ok(None), |r| r.track.take(most)),
            };
            match taken {
                Ok(Some(next)) => rows.push((whose, next)),
                Ok(None) => {}
                Err(e) => failed.push((whose, e.to_string())),
            }
        }
        let stepped = !rows.is_empty();
        let company = if self.batched { rows.len().max(1) } else { 1 };
        failed.extend(rows.chunks(company).flat_map(|rows| self.forward(rows)).collect::<Vec<_>>());
        self.fail(failed);
        // What was drawn is told before anything else is computed.
        for turn in &mut self.live {
            turn.flush();
        }
        stepped
    }

    /// Ends what has failed.
    fn fail(&mut self, mut failed: Vec<(Whose, String)>) {
        let place = |whose: &Whose| match whose {
            Whose::Turn(i, _) => (0, *i),
            Whose::Listener(i) | Whose::Reader(i) => (1, *i),
        };
        failed.sort_by_key(|(whose, _)| std::cmp::Reverse(place(whose)));
        failed.dedup_by_key(|(whose, _)| place(whose));
        for (whose, error) in failed {
            match whose {
                Whose::Turn(i, _) => {
                    self.live.remove(i).refuse(error);
                    self.counters.turns.fetch_sub(1, Ordering::AcqRel);
                }
                Whose::Listener(i) | Whose::Reader(i) => {
                    tracing::warn!(error, "a listening has failed; its turn goes without");
                    drop(self.listeners.remove(i));
                    self.counters.ears.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
    }

    /// Puts these rows through the decoder and draws where a turn's rows are at an end; which failed, and why.
    fn forward(&mut self, rows: &[(Whose, Tensor)]) -> Vec<(Whose, String)> {
        let logits = match self.logits(rows) {
            Ok(logits) => logits,
            // Which of them is at fault is told by running each alone, as long as no sequence has taken its rows yet.
            Err(_) if rows.len() > 1 && rows.iter().all(|(whose, _)| self.is_behind(*whose)) => {
                return rows.chunks(1).flat_map(|row| self.forward(row)).collect();
            }
            Err(e) => return rows.iter().map(|(whose, _)| (*whose, e.to_string())).collect(),
        };
        let draw = |(whose, mut logits): (Whose, Vec<f32>)| {
            let drawn = match whose {
                Whose::Turn(i, branch) => self.live[i].draw(&self.model, branch, &mut logits),
                Whose::Listener(i) | Whose::Reader(i) => self.listeners[i].spell(&self.model, &mut logits),
            };
            drawn.err().map(|e| (whose, e.to_string()))
        };
        logits.into_iter().filter_map(draw).collect()
    }

    fn is_behind(&mut self, whose: Whose) -> bool {
        match whose {
            Whose::Turn(i, branch) => self.live[i].track(branch).is_some_and(|track| track.is_behind()),
            Whose::Listener(i) => self.listeners[i].track.is_behind(),
            Whose::Reader(i) => self.listeners[i].reader.as_ref().is_some_and(|reader| reader.track.is_behind()),
        }
    }

    /// One pass: the logits, of a judge perhaps the state, behind the last row of each branch that has no further rows waiting.
    fn logits(&mut self, rows: &[(Whose, Tensor)]) -> Result<Vec<(Whose, Vec<f32>)>> {
        let tensors: Vec<&Tensor> = rows.iter().map(|(_, t)| t).collect();
        let x = match tensors[..] {
            [] => return Ok(Vec::new()),
            [only] => only.clone(),
            _ => Tensor::cat(&tensors, 0)?,
        };
        // What turns were promised is there; for listeners, old conversations give way.
        let new = |whose: &Whose, n: usize| match whose {
            Whose::Turn(..) => 0,
            Whose::Listener(i) => self.listeners[*i].track.sequence.blocks_for(n),
            Whose::Reader(i) => self.listeners[*i].reader.as_ref().map_or(0, |r| r.track.sequence.blocks_for(n)),
        };
        let blocks = rows.iter().map(|(whose, t)| new(whose, t.dims()[0])).sum();
        let has_room = self.memories.make_room(&self.pool, blocks, promised(&self.live));
        if blocks > 0 && !has_room {
            return Err(hearken_models::Error::KvFull { blocks: self.pool.fill().limit });
        }
        let turns = self.live.iter_mut().enumerate();
        let turns = turns.flat_map(|(i, turn)| turn.tracks().map(move |(branch, t)| (Whose::Turn(i, branch), t)));
        let ears = self.listeners.iter_mut().enumerate().flat_map(|(i, l)| {
            let reader = l.reader.as_mut().map(|reader| (Whose::Reader(i), &mut reader.track));
            std::iter::once((Whose::Listener(i), &mut l.track)).chain(reader)
        });
        let mut next = rows.iter().peekable();
        let mut shares = Vec::with_capacity(rows.len());
        for (whose, track) in turns.chain(ears) {
            if let Some((_, tensor)) = next.next_if(|(at, _)| *at == whose) {
                shares.push(Share { sequence: &mut track.sequence, tokens: tensor.dims()[0] });
            }
        }
        let hidden = self.model.decoder.forward(&x, &mut shares)?;
        let mut last = Vec::new();
        let mut at = 0;
        for (whose, tensor) in rows {
            at += tensor.dims()[0];
            let wanted = match whose {
                Whose::Turn(i, branch) => self.live[*i].wants_logits(*branch),
                Whose::Listener(_) => false,
                Whose::Reader(i) => self.listeners[*i].reader.as_ref().is_some_and(|r| r.track.waiting() == 0),
            };
            if wanted {
                last.push((*whose, at as u32 - 1));
            }
        }
        if last.is_empty() {
            return Ok(Vec::new());
        }
        let pick = |last: &[(Whose, u32)]| {
            let index: Vec<u32> = last.iter().map(|(_, row)| *row).collect();
            hidden.index_select(&Tensor::new(index, hidden.device())?, 0)
        };
        // Of a judge's row the state itself is read, where the checkpoint has a head for that: no logits are made of it.
        let is_judge = |whose: &Whose| matches!(whose, Whose::Turn(_, Branch::Judge));
        let reads_state = self.model.finish.reads_state();
        let (judged, drawn): (Vec<_>, Vec<_>) = last.into_iter().partition(|(whose, _)| reads_state && is_judge(whose));
        let mut outcomes = Vec::new();
        if !judged.is_empty() {
            outcomes.extend(pick(&judged)?.to_dtype(DType::F32)?.to_vec2::<f32>()?);
        }
        if !drawn.is_empty() {
            outcomes.extend(self.model.decoder.logits(&pick(&drawn)?)?.to_vec2::<f32>()?);
        }
        Ok(judged.into_iter().chain(drawn).map(|(whose, _)| whose).zip(outcomes).collect())
    }
}

impl Counters {
    fn ended(&self, arrival: &Arrival) {
        let counter = if matches!(arrival, Arrival::Turn(_)) { &self.turns } else { &self.ears };
        counter.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Blocks that live turns may still take.
fn promised(live: &[Live]) -> usize {
    live.iter().map(Live::promised).sum()
}

/// Shares a budget of rows among those who fill (the others are `None`): equally, and what one does not need goes to the rest.
fn fair(waiting: &[Option<usize>], budget: usize) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..waiting.len()).filter(|i| waiting[*i].is_some()).collect();
    order.sort_by_key(|i| waiting[*i]);
    let mut shares = vec![None; waiting.len()];
    let (mut left, mut budget) = (order.len(), budget);
    for i in order {
        // Nobody starves, however many there are.
        let share = waiting[i].unwrap_or(0).min((budget / left).max(1));
        shares[i] = Some(share);
        budget = budget.saturating_sub(share);
        left -= 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::fair;

    #[test]
    fn a_budget_is_shared_equally_and_nothing_of_it_is_lost() {
        assert_eq!(fair(&[Some(300), None, Some(5), Some(300)], 65), [Some(30), None, Some(5), Some(30)]);
        assert_eq!(fair(&[Some(9), Some(9)], 1), [Some(1), Some(1)]);
        assert_eq!(fair(&[], 64), []);
    }
}
