//! Words by the decoder itself, where a checkpoint has no ear for them: a fork of the prefix is asked what was said, and dropped again.
//!
//! A reading begins with the words that are committed already, so that it can only go on from them. What two readings after one another
//! agree on is committed (LocalAgreement-2: Liu et al. 2020; Macháček et al. 2023, "Turning Whisper into Real-Time Transcription System").

use hearken_models::Result;
use hearken_models::checkpoint::Checkpoint;
use hearken_models::sampler::{Sampler, Sampling};
use hearken_models::tokenizer::Detokenizer;

use super::track::Track;

/// Tokens that nobody exceeds who speaks for so many tokens of sound: fast English has five a second, of 12.5. A reading that loops ends here.
fn most(sound: usize) -> usize {
    8 + sound * 5 / 8
}

/// One reading.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) track: Track,
    sampler: Sampler,
    detokenizer: Detokenizer,
    text: String,
    /// Tokens that may still come.
    left: usize,
}

impl Reader {
    /// Asks on `track`, which ends with the sound and shall be nobody else's, for the words of its last `sound` tokens behind `committed`.
    pub(super) fn new(model: &Checkpoint, mut track: Track, sound: usize, committed: &str) -> Result<Self> {
        for piece in model.format.transcription() {
            track.push_tokens(model, &model.tokenizer.ids(&piece)?)?;
        }
        let known = model.tokenizer.text(committed)?;
        track.push_tokens(model, &known)?;
        // Greedy; the penalty keeps a young model from saying one phrase for ever.
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, repetition_penalty: 1.05, ..Sampling::default() });
        known.iter().for_each(|id| sampler.observe(*id));
        let left = most(sound).saturating_sub(known.len()).max(8);
        Ok(Self { track, sampler, detokenizer: Detokenizer::default(), text: String::new(), left })
    }

    /// Draws the next token; `true` when the reading is at its end.
    pub(super) fn draw(&mut self, model: &Checkpoint, logits: &mut [f32]) -> Result<bool> {
        let token = self.sampler.draw(logits);
        self.left -= 1;
        if token == model.stop {
            return Ok(true);
        }
        self.text.push_str(&model.tokenizer.stream(&mut self.detokenizer, token)?);
        if self.left == 0 {
            return Ok(true);
        }
        self.track.push_tokens(model, &[token])?;
        Ok(false)
    }

    /// Blocks it may still take.
    pub(super) fn blocks(&self) -> usize {
        self.track.blocks(self.left)
    }

    /// What was read behind the words that were committed.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// What is committed of a segment's words, and what the last reading saw behind that.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    pub(super) committed: String,
    tentative: Vec<String>,
}

impl Agreement {
    /// Takes a reading of what follows the committed words. Gives what is committed by it and what seems to follow; the last reading is right.
    pub(super) fn settle(&mut self, reading: &str, is_last: bool) -> (String, String) {
        let words: Vec<String> = reading.split_whitespace().map(str::to_owned).collect();
        let agreed = if is_last {
            words.len()
        } else {
            self.tentative.iter().zip(&words).take_while(|(before, now)| before == now).count()
        };
        let joined = words[..agreed].join(" ");
        let space = if self.committed.is_empty() || joined.is_empty() { "" } else { " " };
        let new = format!("{space}{joined}");
        self.committed.push_str(&new);
        self.tentative = words[agreed..].to_vec();
        (new, self.tentative.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::Agreement;

    #[test]
    fn i7_what_two_readings_agree_on_is_committed_and_stays() {
        let mut words = Agreement::default();
        assert_eq!(words.settle("ask not what you", false), (String::new(), "ask not what you".into()));
        assert_eq!(words.settle("ask not what your country", false), ("ask not what".into(), "your country".into()));
        assert_eq!(words.settle("your country can", false), (" your country".into(), "can".into()));
        assert_eq!(words.settle("", false), (String::new(), String::new()));
        assert_eq!(words.settle("can do", true), (" can do".into(), String::new()));
        assert_eq!(words.committed, "ask not what your country can do");
    }
}
