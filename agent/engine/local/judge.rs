//! Whether the user has finished: a fork of the prefix that ends with what was heard is asked, and one row's outcome is the answer.

use hearken_models::Result;
use hearken_models::checkpoint::Checkpoint;
use hearken_models::kv::BLOCK;

use super::track::Track;

/// Tokens of the question, the words of a long segment among them.
const QUESTION: usize = 192;

/// What is to be asked, once all of it is there.
#[derive(Debug)]
pub(super) struct Due {
    /// Where the sound ends, in tokens.
    pub(super) end: usize,
    /// The words in it, where an ear reads them.
    pub(super) words: Option<String>,
}

impl Due {
    /// Blocks that the asking takes: a copy of the half-full one, and the question's.
    pub(super) const BLOCKS: usize = QUESTION.div_ceil(BLOCK) + 1;
}

/// Asks on `track`, which ends with the sound and shall be nobody else's: the track of the question.
pub(super) fn ask(model: &Checkpoint, mut track: Track, words: Option<&str>) -> Result<Track> {
    let mut ids = Vec::new();
    for piece in model.finish.question(model.format, words) {
        ids.extend(model.tokenizer.ids(&piece)?);
    }
    // The end is what counts.
    let from = ids.len().saturating_sub(QUESTION);
    track.push_tokens(model, &ids[from..])?;
    Ok(track)
}
