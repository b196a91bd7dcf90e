//! A rendered conversation on its way into a track: its tokens, and its sounds, which are heard slice by slice.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use hearken_models::checkpoint::{Checkpoint, SEGMENT};
use hearken_models::ear::{Hearing, Naming};
use hearken_models::kv::Unit;
use hearken_models::prompt::Piece;
use hearken_models::words::{Guess, Words};
use hearken_models::{Result, Tensor};

use super::track::Track;
use crate::engine::{Content, Item, Role};

/// Samples heard in one go: others' tokens wait no longer than this takes.
pub(super) const SLICE: usize = 32_000;

/// One segment of sound, as far as it was heard.
#[derive(Debug)]
pub(super) struct Ears {
    hearing: Box<dyn Hearing>,
    naming: Naming,
    /// Shared with forks, as long as none hears more.
    samples: Arc<Vec<f32>>,
    /// Tokens made of it.
    made: usize,
    words: Option<Words>,
}

impl Ears {
    pub(super) fn new(model: &Checkpoint) -> Self {
        Self {
            hearing: model.ear.hearing(),
            naming: model.ear.naming(),
            samples: Arc::default(),
            made: 0,
            words: model.words.as_ref().map(|_| Words::default()),
        }
    }

    pub(super) fn fork(&self) -> Self {
        Self {
            hearing: self.hearing.fork(),
            naming: self.naming.clone(),
            samples: self.samples.clone(),
            made: self.made,
            words: self.words.clone(),
        }
    }

    /// What the segment is called if it ends here.
    pub(super) fn name(&self) -> Option<Unit> {
        self.naming.flush().last().copied()
    }

    /// Tokens that the segment has if it ends here.
    pub(super) fn tokens(&self) -> usize {
        self.made + self.naming.flush().len()
    }

    /// Samples heard.
    pub(super) fn heard(&self) -> usize {
        self.samples.len()
    }

    /// Hears the next samples and puts what became final behind the first `skip` tokens of the segment into the track.
    pub(super) fn step(&mut self, model: &Checkpoint, samples: &[f32], skip: usize, track: &mut Track) -> Result<()> {
        let heard = self.hearing.step(samples)?;
        let units = self.naming.step(samples);
        Arc::make_mut(&mut self.samples).extend_from_slice(samples);
        if let (Some(ear), Some(words)) = (&model.words, &mut self.words) {
            ear.hear(words, &model.ear.norm(&heard.hidden)?)?;
        }
        let known = skip.saturating_sub(self.made);
        self.made += units.len();
        put(&heard.embeddings, units, known, track)
    }

    /// Puts the rest of the segment into the track, as if it ended here.
    pub(super) fn finish(&self, skip: usize, track: &mut Track) -> Result<()> {
        let rest = self.hearing.fork().flush()?.embeddings;
        put(&rest, self.naming.flush(), skip.saturating_sub(self.made), track)
    }

    /// Begins to read what was said so far, if there is an ear for words.
    pub(super) fn guess(&self, model: &Checkpoint) -> Result<Option<Guess>> {
        let (Some(ear), Some(words)) = (&model.words, &self.words) else { return Ok(None) };
        Ok(Some(ear.guess(words, &model.ear_tail(self.hearing.as_ref())?)?))
    }

    /// Takes a reading in.
    pub(super) fn words(&mut self) -> Option<&mut Words> {
        self.words.as_mut()
    }
}

/// Puts the tokens of a sound but the first `known` into the track.
fn put(rows: &Tensor, units: Vec<Unit>, known: usize, track: &mut Track) -> Result<()> {
    let known = known.min(units.len());
    track.push(rows.narrow(0, known, units.len() - known)?, units[known..].to_vec());
    Ok(())
}

/// A stretch of a prompt.
#[derive(Debug)]
pub(super) enum Part {
    Tokens(Vec<u32>),
    Sound(Sound),
}

/// A segment of a prompt.
#[derive(Debug)]
pub(super) struct Sound {
    samples: Arc<[f32]>,
    range: Range<usize>,
    units: Vec<Unit>,
    /// Whether it belongs to the user's newest message: its words are wanted.
    newest: bool,
}

impl Sound {
    pub(super) fn samples(&self) -> &[f32] {
        &self.samples[self.range.clone()]
    }

    /// Names this very sound.
    pub(super) fn name(&self) -> Option<Unit> {
        self.units.last().copied()
    }
}

/// Whether an item is spoken, wholly or in part.
pub(super) fn has_sound(item: &Item) -> bool {
    sounds(item) > 0
}

fn sounds(item: &Item) -> usize {
    match item {
        Item::Message { content, .. } => content.iter().filter(|c| matches!(c, Content::Sound(_))).count(),
        _ => 0,
    }
}

/// The sounds of the user's newest message: what is answered.
pub(super) fn newest_sounds(conversation: &[Item]) -> usize {
    let is_user = |item: &&Item| matches!(item, Item::Message { role: Role::User, .. });
    conversation.iter().rfind(is_user).map_or(0, sounds)
}

/// The names of the sounds of a session's newest prompt, so that a long conversation is not hashed anew at each of its turns. A sound is known
/// again by being the very same memory, which is held here as long as its names are.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<(Arc<[f32]>, Segments)>);

/// The names of each segment's tokens.
type Segments = Vec<Vec<Unit>>;

impl Names {
    /// The names of a sound, segment by segment.
    fn take(&mut self, model: &Checkpoint, samples: &Arc<[f32]>) -> Segments {
        match self.0.iter().position(|(known, _)| Arc::ptr_eq(known, samples)) {
            Some(i) => self.0.swap_remove(i).1,
            None => samples.chunks(SEGMENT).map(|segment| model.sound_units(segment)).collect(),
        }
    }
}

/// The parts of a rendered conversation.
pub(super) fn parts(
    model: &Checkpoint,
    conversation: &[Item],
    pieces: &[Piece],
    names: &mut Names,
) -> Result<Vec<Part>> {
    let mut used = Vec::new();
    let newest = newest_sounds(conversation);
    let mut left = pieces.iter().filter(|p| matches!(p, Piece::Sound(_))).count();
    let mut parts = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Control(_) | Piece::Text(_) => parts.push(Part::Tokens(model.tokenizer.ids(piece)?)),
            Piece::Sound(samples) => {
                let segments = names.take(model, samples);
                for (start, units) in (0..).step_by(SEGMENT).zip(segments.clone()) {
                    let range = start..samples.len().min(start + SEGMENT);
                    parts.push(Part::Sound(Sound { samples: samples.clone(), range, units, newest: left <= newest }));
                }
                used.push((samples.clone(), segments));
                left -= 1;
            }
        }
    }
    *names = Names(used);
    Ok(parts)
}

/// The names of the sounds whose words are wanted.
pub(super) fn newest(parts: &[Part]) -> impl Iterator<Item = Option<Unit>> {
    parts.iter().filter_map(|part| match part {
        Part::Sound(sound) if sound.newest => Some(sound.name()),
        _ => None,
    })
}

/// Where the last of these sounds ends, in tokens of the prompt, and how many tokens all of them have.
pub(super) fn newest_place(parts: &[Part]) -> Option<(usize, usize)> {
    let (mut at, mut end, mut sound) = (0, None, 0);
    for part in parts {
        match part {
            Part::Tokens(ids) => at += ids.len(),
            Part::Sound(one) => {
                at += one.units.len();
                if one.newest {
                    (end, sound) = (Some(at), sound + one.units.len());
                }
            }
        }
    }
    end.map(|end| (end, sound))
}

/// What each token of a prompt stands for.
pub(super) fn units(parts: &[Part]) -> Vec<Unit> {
    let of = |part: &Part| match part {
        Part::Tokens(ids) => ids.iter().map(|id| Unit::Token(*id)).collect(),
        Part::Sound(sound) => sound.units.clone(),
    };
    parts.iter().flat_map(of).collect()
}

/// A part that is not in the track yet.
#[derive(Debug)]
enum Step {
    Tokens(Vec<u32>),
    Sound { sound: Sound, ears: Box<Ears>, skip: usize },
}

/// A segment that was heard to its end and whose words are wanted.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) ears: Ears,
    pub(super) name: Option<Unit>,
}

/// What of a prompt is still to be put into a track.
#[derive(Debug, Default)]
pub(super) struct Filling {
    steps: VecDeque<Step>,
}

impl Filling {
    /// Of `parts`, the track has the first `kept` tokens. `ears` may have heard the beginning of one of its sounds. A sound that is all there
    /// is heard again if its words are wanted and not `known`.
    pub(super) fn new(
        model: &Checkpoint,
        parts: Vec<Part>,
        kept: usize,
        ears: Option<&Ears>,
        known: impl Fn(Unit) -> bool,
    ) -> Self {
        let mut steps = VecDeque::new();
        let mut at = 0;
        for part in parts {
            match part {
                Part::Tokens(ids) => {
                    let have = kept.saturating_sub(at).min(ids.len());
                    at += ids.len();
                    if have < ids.len() {
                        steps.push_back(Step::Tokens(ids[have..].to_vec()));
                    }
                }
                Part::Sound(sound) => {
                    let count = sound.units.len();
                    let skip = kept.saturating_sub(at).min(count);
                    at += count;
                    let read = model.words.is_some() && sound.newest && !sound.name().is_some_and(&known);
                    if skip < count || read {
                        let ears = begun(ears, sound.samples(), skip).unwrap_or_else(|| Ears::new(model));
                        steps.push_back(Step::Sound { sound, ears: Box::new(ears), skip });
                    }
                }
            }
        }
        Self { steps }
    }

    pub(super) fn is_done(&self) -> bool {
        self.steps.is_empty()
    }

    /// Puts the next tokens and at most one slice of sound into the track; a sound that ends is `unread` if its words are wanted.
    pub(super) fn step(&mut self, model: &Checkpoint, track: &mut Track, unread: &mut VecDeque<Unread>) -> Result<()> {
        let mut heard = false;
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Tokens(ids) => track.push_tokens(model, &ids)?,
                Step::Sound { .. } if heard => {
                    self.steps.push_front(step);
                    break;
                }
                Step::Sound { sound, mut ears, skip } => {
                    heard = true;
                    let rest = &sound.samples()[ears.heard()..];
                    let (now, later) = rest.split_at(rest.len().min(SLICE));
                    ears.step(model, now, skip, track)?;
                    if !later.is_empty() {
                        self.steps.push_front(Step::Sound { sound, ears, skip });
                        break;
                    }
                    ears.finish(skip, track)?;
                    if sound.newest && model.words.is_some() {
                        unread.push_back(Unread { name: sound.name(), ears: *ears });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Ears that have heard the beginning of a sound, and of it no more than the track holds.
pub(super) fn begun(ears: Option<&Ears>, samples: &[f32], have: usize) -> Option<Ears> {
    let ears = ears.filter(|ears| ears.made <= have && samples.starts_with(&ears.samples[..]))?;
    Some(ears.fork())
}
