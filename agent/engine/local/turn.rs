//! One live turn: what it still has to put through the decoder, and what becomes of the tokens it draws.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hearken_models::checkpoint::Checkpoint;
use hearken_models::kv::{BLOCK, Salt, Unit};
use hearken_models::sampler::Sampler;
use hearken_models::splitter::{Part as Said, Splitter};
use hearken_models::tokenizer::Detokenizer;
use hearken_models::words::Guess;
use hearken_models::{Result, Tensor};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Job;
use super::call::{Call, Written};
use super::judge::{self, Due};
use super::memory::Memory;
use super::prompt::{self, Ears, Filling, Names, Part, Unread};
use super::reader::Reader;
use super::track::Track;
use crate::engine::{
    Calling, Ending, EngineError, Event, Finish, Item, Pace, Request, SessionId, Thinking, Timings, Usage,
};

/// How nano writes what the word ear heard into its reasoning.
const WORDS: &str = "The words:";
/// If the reasoning has not come to [`WORDS`] by itself after so many tokens, it is told.
const PATIENCE: usize = 48;
/// What is told when the word ear heard nobody.
const NO_WORDS: &str = "(none)";
/// Tokens of a segment of reasoning, and of reply, when both go on side by side. Source: MODEL "Mind-Paced Speaking".
const THINK_SEGMENT: usize = 80;
const REPLY_SEGMENT: usize = 20;

/// Where the turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prefill,
    Think,
    Reply,
}

/// Which of a turn's tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Branch {
    /// The prompt, the reasoning, and the reply behind it.
    Mind,
    /// A reply beside the reasoning.
    Mouth,
    /// The words of the sound, read by the decoder.
    Words,
    /// Whether the user has finished.
    Judge,
}

/// How tokens become text.
struct Voice {
    sampler: Sampler,
    splitter: Splitter,
    detokenizer: Detokenizer,
}

impl Voice {
    fn new(request: &Request, reasoning: bool) -> Self {
        Self {
            sampler: Sampler::new(request.sampling.clone()),
            splitter: Splitter::new(reasoning),
            detokenizer: Detokenizer::default(),
        }
    }
}

/// A reply that is spoken while the reasoning goes on: each of its segments is a fork of the mind as it is then.
struct Mouth {
    /// The segment that is being spoken.
    track: Option<Track>,
    voice: Voice,
    /// All that was said.
    ids: Vec<u32>,
    /// Tokens of this segment still to come.
    left: usize,
    /// Segments begun.
    segments: usize,
}

/// A request as tokens.
pub(super) struct Plan {
    parts: Vec<Part>,
    pub(super) units: Vec<Unit>,
    /// Without thinking, the ear's words are all the reasoning there is.
    words_alone: bool,
    /// Tokens it may come to.
    pub(super) tokens: usize,
}

impl Plan {
    pub(super) fn new(
        model: &Checkpoint,
        request: &Request,
        names: &mut Names,
    ) -> std::result::Result<Self, EngineError> {
        let render = |thinking| model.format.render(&request.conversation, &request.tools, thinking);
        let mut pieces = render(request.thinking);
        let spoken = model.words.is_some() && prompt::newest_sounds(&request.conversation) > 0;
        // They are written where the reasoning stands: it is opened here, and closed once they are known.
        let words_alone = spoken && request.thinking == Thinking::Off && request.ending != Ending::AskedAlone;
        if words_alone {
            pieces = render(Thinking::On);
        }
        let parts = prompt::parts(model, &request.conversation, &pieces, names).map_err(failed)?;
        let units = prompt::units(&parts);
        // The ear's words are put in beside what is drawn: no more tokens than their sound has, and a few.
        let told = prompt::newest_place(&parts).filter(|_| spoken).map_or(0, |(_, sound)| sound + BLOCK);
        let tokens = units.len() + told + request.thinking_budget + request.max_reply_tokens;
        let limit = model.decoder.config().max_position_embeddings;
        if tokens > limit {
            return Err(EngineError::ContextFull { tokens, limit });
        }
        Ok(Self { parts, units, words_alone, tokens })
    }
}

fn failed(error: impl ToString) -> EngineError {
    EngineError::Model(error.to_string())
}

/// A live turn.
pub(super) struct Live {
    pub(super) session: SessionId,
    pub(super) salt: Salt,
    pub(super) mind: Track,
    mouth: Option<Mouth>,
    events: mpsc::Sender<Event>,
    cancel: Arc<AtomicBool>,
    /// Events the reader was not ready for.
    outbox: VecDeque<Event>,
    filling: Filling,
    request: Request,
    voice: Voice,
    /// The newest sounds by name, and their words as far as they were read.
    said: Vec<(Option<Unit>, Option<String>)>,
    unread: VecDeque<Unread>,
    reading: Option<(Unread, Guess)>,
    /// Words that are still to be written into the reasoning.
    words: Option<String>,
    words_alone: bool,
    /// Where the newest sound ends and how long it is, in tokens, as long as its words are to be read by the decoder.
    to_read: Option<(usize, usize)>,
    reader: Option<Reader>,
    to_judge: Option<Due>,
    /// The question under way.
    judge: Option<Track>,
    /// The reasoning waits for the words; whether it is over when they come.
    holding: Option<bool>,
    /// The end of the reasoning so far, as far as [`WORDS`] is looked for in it.
    tail: String,
    /// The call being written.
    call: Option<Call>,
    phase: Phase,
    since: Instant,
    usage: Usage,
    timings: Timings,
    /// Tokens of its prompt.
    prompt: usize,
    /// Tokens it may come to.
    most: usize,
    pub(super) finish: Option<Finish>,
}

impl Live {
    /// A turn of which `mind` has the first `kept` tokens. `ears` may have heard the beginning of its sound.
    pub(super) fn begin(
        model: &Checkpoint,
        job: Job,
        plan: Plan,
        (mind, kept): (Track, usize),
        ears: Option<&Ears>,
        memory: &Memory,
    ) -> Self {
        let Job { request, events, cancel, since } = job;
        let begun = Instant::now();
        let sounds = |units: &[Unit]| units.iter().filter(|u| matches!(u, Unit::Sound(..))).count();
        let sound_tokens = sounds(&plan.units);
        let usage = Usage {
            sound_tokens,
            text_tokens: plan.units.len() - sound_tokens,
            cached_tokens: kept,
            cached_sound_tokens: sounds(&plan.units[..kept]),
            ..Usage::default()
        };
        let read = |name: &Unit| memory.words(*name).map(str::to_owned);
        let said = if model.words.is_some() {
            prompt::newest(&plan.parts).map(|name| (name, name.as_ref().and_then(read))).collect()
        } else {
            Vec::new()
        };
        let mut to_read = if model.words.is_none() && request.words { prompt::newest_place(&plan.parts) } else { None };
        let mut outbox = VecDeque::new();
        // An open ear may have had them read to the end.
        let known = || -> Option<Vec<&str>> { prompt::newest(&plan.parts).map(|name| memory.words(name?)).collect() };
        if let Some(words) = to_read.and_then(|_| known()) {
            outbox.push_back(Event::Heard(words.join(" ")));
            to_read = None;
        }
        let asks = request.ending != Ending::Known;
        let place = prompt::newest_place(&plan.parts).filter(|_| asks);
        let to_judge = place.map(|(end, _)| Due { end, words: None });
        // Without sound there is nothing to be asked, and without an answer nothing else to be done.
        let finish = (request.ending == Ending::AskedAlone && to_judge.is_none()).then_some(Finish::Stop);
        let filling = Filling::new(model, plan.parts, kept, ears, |name| memory.words(name).is_some());
        let mut turn = Self {
            session: request.session,
            salt: Salt(request.tenant.0),
            mind,
            mouth: None,
            events,
            cancel,
            outbox,
            filling,
            voice: Voice::new(&request, request.thinking == Thinking::On),
            said,
            unread: VecDeque::new(),
            reading: None,
            words: None,
            words_alone: plan.words_alone,
            to_read,
            reader: None,
            to_judge,
            judge: None,
            holding: None,
            tail: String::new(),
            call: None,
            phase: Phase::Prefill,
            since: begun,
            usage,
            timings: Timings { queued: begun - since, ..Timings::default() },
            prompt: plan.units.len(),
            most: plan.tokens,
            finish,
            request,
        };
        turn.hear_words();
        turn
    }

    /// Tells the words once all of them are read.
    fn hear_words(&mut self) {
        if self.said.is_empty() || self.said.iter().any(|(_, words)| words.is_none()) {
            return;
        }
        let words: Vec<String> = self.said.drain(..).filter_map(|(_, words)| words.filter(|w| !w.is_empty())).collect();
        let words = words.join(" ");
        self.outbox.push_back(Event::Heard(words.clone()));
        if let Some(due) = &mut self.to_judge {
            due.words = Some(words.clone());
        }
        self.words = Some(if words.is_empty() { NO_WORDS.into() } else { words });
    }

    /// Blocks that it may still take from the pool.
    pub(super) fn promised(&self) -> usize {
        let own = self.mind.sequence.blocks_for(self.most.saturating_sub(self.mind.sequence.len()));
        // A reader copies a half-full block, asks, and reads as many tokens as there is sound, and a few.
        let asked = match (self.to_read, &self.reader) {
            (Some((_, sound)), _) => (sound + BLOCK).div_ceil(BLOCK) + 2,
            (None, reader) => reader.as_ref().map_or(0, Reader::blocks),
        };
        // A mouth copies a half-full block and repeats what was said.
        let asking = self.judge.as_ref().map_or(0, |track| track.blocks(0));
        let judged = if self.to_judge.is_some() { Due::BLOCKS } else { asking };
        own + asked + judged + if self.is_paced() { self.request.max_reply_tokens.div_ceil(BLOCK) + 1 } else { 0 }
    }

    /// Lets others who begin alike find its prompt; what was drawn behind it nobody asks for again.
    pub(super) fn publish(&self) {
        let mut prompt = self.mind.fork();
        prompt.truncate(self.prompt);
        prompt.publish(self.salt);
    }

    /// Whether its sound is not all heard.
    pub(super) fn has_sound(&self) -> bool {
        !self.filling.is_done()
    }

    /// Hears a slice of its sound, and puts in what of its prompt comes before the next one.
    pub(super) fn hear(&mut self, model: &Checkpoint) -> Result<()> {
        let begun = Instant::now();
        self.filling.step(model, &mut self.mind, &mut self.unread)?;
        self.timings.encode += begun.elapsed();
        Ok(())
    }

    /// Goes on reading the words of its sound; `false` when there is nothing to read now. What was read is kept in the session's memory.
    pub(super) fn read(&mut self, model: &Checkpoint, memory: &mut Memory) -> Result<bool> {
        self.begin_to_judge(model)?;
        let Some(ear) = &model.words else { return Ok(false) };
        // The first token of the reasoning does not need them.
        let waits = self.words_alone || self.request.ending == Ending::AskedAlone;
        if self.has_sound() || (self.phase == Phase::Prefill && !waits) {
            return Ok(false);
        }
        let begun = Instant::now();
        let Some((_, guess)) = &mut self.reading else {
            let Some(unread) = self.unread.pop_front() else {
                self.words_came(model)?;
                return Ok(false);
            };
            if let Some(guess) = unread.ears.guess(model)? {
                self.reading = Some((unread, guess));
            }
            self.timings.words += begun.elapsed();
            return Ok(true);
        };
        if !ear.step(guess)?
            && let Some((mut unread, guess)) = self.reading.take()
            && let Some(words) = unread.ears.words()
        {
            ear.settle(words, &guess, true)?;
            let text = ear.said(words)?;
            if let Some(name) = unread.name {
                memory.remember_words(name, text.clone());
            }
            for (name, words) in &mut self.said {
                if *name == unread.name {
                    *words = Some(text.clone());
                }
            }
            self.hear_words();
        }
        self.timings.words += begun.elapsed();
        Ok(true)
    }

    /// Whoever waited for the words goes on.
    fn words_came(&mut self, model: &Checkpoint) -> Result<()> {
        if self.words_alone {
            self.words_alone = false;
            let words = self.words.take().unwrap_or_default();
            // The line break belongs to the words' last token, as in training: "?\n" is one token.
            let mut tokens = model.tokenizer.text(&format!("{WORDS} {words}\n"))?;
            tokens.extend(model.tokenizer.control(model.format.end_of_thinking().trim_start())?);
            self.mind.push_tokens(model, &tokens)?;
        }
        if let Some(over) = self.holding.take() {
            self.steer(model, over)?;
            self.go_on_speaking(model)?;
        }
        Ok(())
    }

    /// Whether nobody wants this turn any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire) || self.events.is_closed()
    }

    /// Gives the reader what it has room for; `false` while it lags behind.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(event) = self.outbox.pop_front() {
            if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
                self.outbox.push_front(event);
                return false;
            }
        }
        true
    }

    /// Whether it is decoding, so that its rows are few and its reader is waiting for each.
    pub(super) fn is_decoding(&self) -> bool {
        self.phase != Phase::Prefill
    }

    /// The tracks that have rows for the next pass, and how many.
    pub(super) fn branches(&self) -> impl Iterator<Item = (Branch, usize)> {
        let going_on = self.finish.is_none();
        let mouth = self.mouth.as_ref().and_then(|mouth| mouth.track.as_ref()).map_or(0, Track::waiting);
        let words = self.reader.as_ref().map_or(0, |reader| reader.track.waiting());
        let judge = self.judge.as_ref().map_or(0, Track::waiting);
        let rows = [
            (Branch::Mind, self.mind.waiting()),
            (Branch::Mouth, mouth),
            (Branch::Words, words),
            (Branch::Judge, judge),
        ];
        // When all is said, only what is told of the sound may still be missing.
        let told = |branch| matches!(branch, Branch::Words | Branch::Judge);
        rows.into_iter().filter(move |(branch, rows)| *rows > 0 && (going_on || told(*branch)))
    }

    /// One of its tracks, if it is there.
    pub(super) fn track(&mut self, branch: Branch) -> Option<&mut Track> {
        match branch {
            Branch::Mind => Some(&mut self.mind),
            Branch::Mouth => self.mouth.as_mut().and_then(|mouth| mouth.track.as_mut()),
            Branch::Words => self.reader.as_mut().map(|reader| &mut reader.track),
            Branch::Judge => self.judge.as_mut(),
        }
    }

    /// All of its tracks, in the order of [`Live::branches`].
    pub(super) fn tracks(&mut self) -> impl Iterator<Item = (Branch, &mut Track)> {
        let mouth = self.mouth.as_mut().and_then(|mouth| mouth.track.as_mut());
        let words = self.reader.as_mut().map(|reader| (Branch::Words, &mut reader.track));
        let judge = self.judge.as_mut().map(|track| (Branch::Judge, track));
        let first = std::iter::once((Branch::Mind, &mut self.mind)).chain(mouth.map(|track| (Branch::Mouth, track)));
        first.chain(words).chain(judge)
    }

    /// Takes up to `most` rows for the next forward pass.
    pub(super) fn take(&mut self, branch: Branch, most: usize) -> Result<Option<Tensor>> {
        self.track(branch).map_or(Ok(None), |track| track.take(most))
    }

    /// Whether the rows just computed end in the place where the next token is drawn.
    pub(super) fn wants_logits(&mut self, branch: Branch) -> bool {
        // Beside a mouth the mind itself replies nothing.
        let replies = !self.is_paced() || self.voice.splitter.is_reasoning();
        let answers = self.request.ending != Ending::AskedAlone && replies;
        let ready = branch != Branch::Mind || (self.filling.is_done() && !self.words_alone && answers);
        ready && self.track(branch).is_some_and(|track| track.waiting() == 0)
    }

    /// Draws the next token and says what follows from it.
    pub(super) fn draw(&mut self, model: &Checkpoint, branch: Branch, logits: &mut [f32]) -> Result<()> {
        match branch {
            Branch::Mind => self.think(model, logits),
            Branch::Mouth => self.speak(model, logits),
            Branch::Words => self.spell(model, logits),
            Branch::Judge => {
                self.judged(model, logits);
                Ok(())
            }
        }
    }

    /// Begins to read the words of the sound, once all of it is in the prefix.
    fn begin_to_read(&mut self, model: &Checkpoint) -> Result<()> {
        let Some((end, sound)) = self.to_read.take() else { return Ok(()) };
        let mut track = self.mind.fork();
        track.truncate(end);
        self.reader = Some(Reader::new(model, track, sound, "")?);
        Ok(())
    }

    fn spell(&mut self, model: &Checkpoint, logits: &mut [f32]) -> Result<()> {
        if let Some(reader) = &mut self.reader
            && reader.draw(model, logits)?
        {
            self.outbox.push_back(Event::Heard(reader.text().trim().to_owned()));
            self.reader = None;
        }
        Ok(())
    }

    /// Asks whether the user has finished, once all that was heard is in the prefix and its words are known.
    fn begin_to_judge(&mut self, model: &Checkpoint) -> Result<()> {
        let reads_on = !self.said.is_empty();
        let mind = &self.mind;
        let ready = |due: &mut Due| mind.sequence.len() >= due.end && !reads_on;
        let Some(due) = self.to_judge.take_if(ready) else { return Ok(()) };
        let mut track = self.mind.fork();
        track.truncate(due.end);
        self.judge = Some(judge::ask(model, track, due.words.as_deref())?);
        Ok(())
    }

    /// Tells what came of it; `row` is what [`Finish::chance`](hearken_models::finish::Finish::chance) takes.
    fn judged(&mut self, model: &Checkpoint, row: &[f32]) {
        self.judge = None;
        self.outbox.push_back(Event::Finished(model.finish.chance(row)));
        if self.request.ending == Ending::AskedAlone {
            self.finish = Some(Finish::Stop);
        }
    }

    /// Whether all of it is said.
    pub(super) fn is_over(&self) -> bool {
        let reads = !self.said.is_empty() && (self.reading.is_some() || !self.unread.is_empty());
        self.finish.is_some() && !reads && self.reader.is_none() && self.judge.is_none()
    }

    /// Nobody waits for the rest.
    pub(super) fn give_up(&mut self) {
        self.finish = Some(Finish::Cancelled);
        (self.reader, self.to_judge, self.judge) = (None, None, None);
        self.said.clear();
    }

    fn think(&mut self, model: &Checkpoint, logits: &mut [f32]) -> Result<()> {
        if self.phase == Phase::Prefill {
            self.enter(if self.voice.splitter.is_reasoning() { Phase::Think } else { Phase::Reply });
            self.begin_to_read(model)?;
            if self.is_paced() && self.request.pace == Pace::SpeakFirst {
                self.open_mouth(model)?;
            }
        }
        if self.call.is_some() {
            return self.go_on_calling(model, logits);
        }
        if !self.voice.splitter.is_reasoning() && self.usage.reply_tokens == 0 && self.is_to_call(model, logits) {
            self.call = Call::new(&self.request.tools, &self.request.calling);
            if let Some(call) = &mut self.call {
                let written = call.open(model);
                return self.call_on(model, written);
            }
        }
        let token = self.voice.sampler.draw(logits);
        if token == model.stop && self.voice.splitter.is_reasoning() {
            // A turn that ends inside its reasoning has answered nothing: the reasoning is over, the reply is still due.
            self.steer(model, true)?;
            return self.go_on_speaking(model);
        }
        if token == model.stop {
            self.finish = Some(Finish::Stop);
            return Ok(());
        }
        let reasoning = self.voice.splitter.is_reasoning();
        let count = if reasoning { &mut self.usage.reasoning_tokens } else { &mut self.usage.reply_tokens };
        *count += 1;
        self.mind.push_tokens(model, &[token])?;
        let text = model.tokenizer.stream(&mut self.voice.detokenizer, token)?;
        self.write(&text);
        if self.voice.splitter.is_reasoning() {
            self.steer(model, self.usage.reasoning_tokens >= self.request.thinking_budget)?;
        } else if self.usage.reply_tokens >= self.request.max_reply_tokens {
            self.finish = Some(Finish::Length);
        }
        self.go_on_speaking(model)
    }

    /// Whether its reply is to be a call: because it must be, or because the model's first token says so.
    fn is_to_call(&self, model: &Checkpoint, logits: &[f32]) -> bool {
        match (&self.request.calling, &model.calls) {
            _ if self.request.tools.is_empty() => false,
            (Calling::May, None) => false,
            // A model that was not trained to call does not know when it has: what a function gave is answered.
            (Calling::May, _) if matches!(self.request.conversation.last(), Some(Item::ToolResult { .. })) => false,
            (Calling::May, Some(calls)) => calls.chance(logits) >= calls.threshold,
            _ => true,
        }
    }

    fn go_on_calling(&mut self, model: &Checkpoint, logits: &[f32]) -> Result<()> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let written = call.draw(model, logits)?;
        self.usage.reply_tokens += 1;
        self.call_on(model, written)
    }

    /// Puts what is written of the call into the track, and tells of it.
    fn call_on(&mut self, model: &Checkpoint, written: Written) -> Result<()> {
        let Written { token, forced, arguments, is_over } = written;
        let tokens = if model.format.marks_calls() {
            model.tokenizer.control(&forced)?
        } else {
            model.tokenizer.text(&forced)?
        };
        self.usage.reply_tokens += tokens.len();
        self.mind.push_tokens(model, token.as_slice())?;
        self.mind.push_tokens(model, &tokens)?;
        let Some(call) = &self.call else { return Ok(()) };
        let name = call.name().unwrap_or_default().to_owned();
        if !arguments.is_empty() {
            self.outbox.push_back(Event::CallDelta { name: name.clone(), delta: arguments });
        }
        if is_over {
            self.outbox.push_back(Event::ToolCall { name, arguments: call.arguments().to_owned() });
            self.finish = Some(Finish::Stop);
        } else if self.usage.reply_tokens >= self.request.max_reply_tokens {
            self.finish = Some(Finish::Length);
        }
        Ok(())
    }

    fn is_paced(&self) -> bool {
        self.request.calling == Calling::May
            && self.request.pace != Pace::ThinkBefore
            && self.request.thinking == Thinking::On
    }

    /// Begins the next segment of the reply when the reasoning has come far enough for it.
    fn go_on_speaking(&mut self, model: &Checkpoint) -> Result<()> {
        if !self.is_paced() || self.holding.is_some() {
            return Ok(());
        }
        let begun = self.mouth.as_ref().map_or(0, |mouth| mouth.segments);
        let ahead = usize::from(self.request.pace == Pace::SpeakFirst);
        let enough = self.usage.reasoning_tokens >= THINK_SEGMENT * (begun + 1 - ahead.min(begun));
        let over = !self.voice.splitter.is_reasoning();
        if (enough || over) && self.mouth.as_ref().is_none_or(|mouth| mouth.track.is_none()) {
            self.open_mouth(model)?;
        }
        Ok(())
    }

    /// A fork of the mind with its reasoning closed and what was said so far: the next segment of the reply.
    fn open_mouth(&mut self, model: &Checkpoint) -> Result<()> {
        let over = !self.voice.splitter.is_reasoning();
        let mut track = self.mind.fork_with_waiting();
        if !over {
            track.push_tokens(model, &model.tokenizer.control(model.format.end_of_thinking())?)?;
        }
        let request = &self.request;
        let fresh = || Mouth { track: None, voice: Voice::new(request, false), ids: Vec::new(), left: 0, segments: 0 };
        let mouth = self.mouth.get_or_insert_with(fresh);
        track.push_tokens(model, &mouth.ids)?;
        mouth.track = Some(track);
        mouth.segments += 1;
        // When the reasoning is over, the reply runs on to its end.
        mouth.left = if over { usize::MAX } else { REPLY_SEGMENT };
        if over {
            self.mind.stop();
        }
        Ok(())
    }

    fn speak(&mut self, model: &Checkpoint, logits: &mut [f32]) -> Result<()> {
        let Some(mouth) = &mut self.mouth else { return Ok(()) };
        let token = mouth.voice.sampler.draw(logits);
        if token == model.stop {
            self.finish = Some(Finish::Stop);
            return Ok(());
        }
        mouth.ids.push(token);
        mouth.left -= 1;
        if mouth.left == 0 {
            mouth.track = None;
        } else if let Some(track) = &mut mouth.track {
            track.push_tokens(model, &[token])?;
        }
        let text = model.tokenizer.stream(&mut mouth.voice.detokenizer, token)?;
        for part in mouth.voice.splitter.push(&text) {
            self.part(part);
        }
        self.usage.reply_tokens += 1;
        if self.usage.reply_tokens >= self.request.max_reply_tokens {
            self.finish = Some(Finish::Length);
        }
        self.go_on_speaking(model)
    }

    /// Puts the ear's words where the reasoning asks for them, and closes a reasoning that is `over`.
    fn steer(&mut self, model: &Checkpoint, over: bool) -> Result<()> {
        let asked = self.tail.trim_end().ends_with(WORDS);
        let mut end = model.format.end_of_thinking();
        let due = asked || over || self.usage.reasoning_tokens >= PATIENCE;
        if due && !self.said.is_empty() {
            self.holding = Some(over);
            return Ok(());
        }
        if let Some(words) = self.words.take_if(|_| due) {
            let lead = if asked { String::new() } else { format!("\n{WORDS}") };
            // With the line break, for "?\n" is one token and stands so in the training.
            self.force(model, &format!("{lead} {words}\n"), false)?;
            end = end.trim_start();
        }
        if over {
            self.force(model, end, true)?;
        }
        Ok(())
    }

    /// Writes text as if the model had.
    fn force(&mut self, model: &Checkpoint, text: &str, control: bool) -> Result<()> {
        let ids = if control { model.tokenizer.control(text)? } else { model.tokenizer.text(text)? };
        ids.iter().for_each(|id| self.voice.sampler.observe(*id));
        self.mind.push_tokens(model, &ids)?;
        self.voice.detokenizer = Detokenizer::default();
        self.write(text);
        Ok(())
    }

    fn write(&mut self, text: &str) {
        if self.words.is_some() || !self.said.is_empty() {
            self.tail.push_str(text);
        }
        for part in self.voice.splitter.push(text) {
            self.part(part);
        }
    }

    fn part(&mut self, part: Said) {
        self.outbox.push_back(match part {
            Said::Reasoning(text) => Event::Reasoning(text),
            Said::Reply(text) => Event::Reply(text),
            Said::CallDelta { name, delta } => Event::CallDelta { name, delta },
            Said::ToolCall { name, arguments } => Event::ToolCall { name, arguments },
            Said::EndOfReasoning => return self.enter(Phase::Reply),
        });
    }

    /// Books the time of the phase that ends.
    fn enter(&mut self, phase: Phase) {
        let spent = self.since.elapsed();
        match self.phase {
            // The phase began with the turn; what went into hearing is booked there.
            Phase::Prefill => self.timings.prefill = spent.saturating_sub(self.timings.encode + self.timings.words),
            Phase::Think => self.timings.think = spent,
            Phase::Reply => self.timings.reply = spent,
        }
        (self.phase, self.since) = (phase, Instant::now());
    }

    /// Ends the turn: the last events go out, the track comes back for the next turn.
    pub(super) fn end(mut self, finish: Finish) -> (SessionId, Track) {
        let voice = self.mouth.take().map(|mouth| mouth.voice);
        for splitter in [std::mem::replace(&mut self.voice.splitter, Splitter::new(false))]
            .into_iter()
            .chain(voice.map(|voice| voice.splitter))
        {
            for part in splitter.finish() {
                self.part(part);
            }
        }
        self.enter(Phase::Reply);
        self.outbox.push_back(Event::Done { finish, usage: self.usage, timings: self.timings });
        self.deliver();
        (self.session, self.mind)
    }

    /// Ends the turn with an error. Its track is dropped: whether it is whole is not known.
    pub(super) fn refuse(mut self, error: impl ToString) {
        self.outbox.push_back(Event::Failed(failed(error)));
        self.deliver();
    }

    /// Delivers what is left without holding up the compute thread: a reader that lags is served from a task of its own.
    fn deliver(&mut self) {
        if self.flush() || self.events.is_closed() {
            return;
        }
        let (events, outbox) = (self.events.clone(), std::mem::take(&mut self.outbox));
        let deliver = move || outbox.into_iter().try_for_each(|event| events.blocking_send(event).map_err(drop));
        // Ends with the reader: when it has read all, or is gone.
        drop(std::thread::Builder::new().name("deliver".into()).spawn(deliver));
    }
}
