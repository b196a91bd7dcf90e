//! Stop sequences, found across the borders of the pieces that a text comes in.

/// Lets text through up to the first of the sequences, which itself is swallowed.
#[derive(Debug, Default)]
pub(super) struct Stops {
    sequences: Vec<String>,
    /// The end of the text so far that may be the beginning of a sequence.
    held: String,
    stopped: bool,
}

impl Stops {
    /// Empty sequences stop nothing.
    pub(super) fn new(sequences: Vec<String>) -> Self {
        let sequences = sequences.into_iter().filter(|s| !s.is_empty()).collect();
        Self { sequences, held: String::new(), stopped: false }
    }

    /// Whether a sequence was found.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What may be told when this has come.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.sequences.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begun = |from: &usize| self.sequences.iter().any(|s| s.starts_with(&self.held[*from..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(begun).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text has ended: what was held back is text after all.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Stops;

    fn run(sequences: &[String], pieces: &[&str]) -> (String, bool) {
        let mut stops = Stops::new(sequences.to_vec());
        let mut told: String = pieces.iter().map(|piece| stops.push(piece)).collect();
        told += &stops.finish();
        (told, stops.is_stopped())
    }

    proptest! {
        /// However a text is cut, what is told ends where the first sequence begins.
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,24}", sequences in prop::collection::vec("[abé]{1,4}", 0..3), cuts in prop::collection::vec(0_usize..24, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
            cuts.extend([0, text.len()]);
            cuts.retain(|at| *at <= text.len());
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            // The sequence that ends first is found first.
            let whole = text.char_indices().map(|(at, c)| at + c.len_utf8()).find_map(|end| {
                sequences.iter().filter_map(|s| text[..end].find(s.as_str())).min()
            });
            let (told, stopped) = run(&sequences, &text.split_inclusive(|_| true).collect::<Vec<_>>());
            prop_assert_eq!((&told[..], stopped), (&text[..whole.unwrap_or(text.len())], whole.is_some()));
            let (in_pieces, stopped) = run(&sequences, &pieces);
            prop_assert_eq!(stopped, whole.is_some());
            prop_assert!(told.starts_with(&in_pieces));
        }
    }
}
