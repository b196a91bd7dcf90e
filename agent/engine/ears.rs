//! The ears of one session as their holder keeps them: one is open at a time, and those before it still tell their last words.

use std::collections::VecDeque;

use super::{Caption, Listening};

/// Ears by their names, in the order in which they were opened.
#[derive(Debug)]
pub struct Ears<K> {
    /// Whose captions are still to come.
    ears: VecDeque<(K, Listening)>,
    /// Whether the last of them is open.
    is_open: bool,
}

impl<K> Default for Ears<K> {
    fn default() -> Self {
        Self { ears: VecDeque::new(), is_open: false }
    }
}

impl<K: Copy> Ears<K> {
    /// The next ear is open now, or was refused.
    pub fn open(&mut self, name: K, listening: Option<Listening>) {
        self.is_open = listening.is_some();
        self.ears.extend(listening.map(|listening| (name, listening)));
    }

    fn opened(&self) -> Option<&Listening> {
        self.ears.back().filter(|_| self.is_open).map(|(_, listening)| listening)
    }

    /// Hands samples to the open ear. What finds no room closes it; its turn brings them all again.
    pub fn hear(&mut self, samples: &[f32]) {
        if self.opened().is_some_and(|listening| listening.push(samples) > 0) {
            self.close();
        }
    }

    /// The open ear has heard all, and tells its last words; whether there was one.
    pub fn finish(&mut self) -> bool {
        if let Some(listening) = self.opened() {
            listening.finish();
        }
        std::mem::take(&mut self.is_open)
    }

    /// Drops the open ear.
    pub fn close(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.ears.pop_back();
        }
    }

    /// The next caption of the eldest ear, or that it has no more; for ever when there is no ear.
    pub async fn next(&mut self) -> (K, Option<Caption>) {
        let Some((name, listening)) = self.ears.front_mut() else { return std::future::pending().await };
        let name = *name;
        let caption = listening.next().await;
        if caption.is_none() {
            self.ears.pop_front();
            self.is_open &= !self.ears.is_empty();
        }
        (name, caption)
    }
}
