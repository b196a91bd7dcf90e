//! Draws the next token: repetition penalty, temperature, top-k, top-p, with a seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How tokens are drawn; `[sampling]` of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 means greedy.
    pub temperature: f32,
    /// Nucleus mass, 0..=1.
    pub top_p: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Divides the positive logits of tokens already written and multiplies the negative ones; 1 does nothing.
    pub repetition_penalty: f32,
    /// Two runs with one seed draw the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// The reference client's choice.
    fn default() -> Self {
        Self { temperature: 0.7, top_p: 0.9, top_k: 0, repetition_penalty: 1.05, seed: 0 }
    }
}

impl Sampling {
    /// For the `turn`-th turn of a session, which draws with seed + turn.
    pub fn for_turn(&self, turn: u64) -> Self {
        Self { seed: self.seed.wrapping_add(turn), ..self.clone() }
    }

    /// The likeliest token always, nothing penalised.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A sampler with its state.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: StdRng,
    /// What was written since the turn began: these are penalised.
    written: Vec<u32>,
}

impl Sampler {
    /// A fresh sampler for one turn.
    pub fn new(sampling: Sampling) -> Self {
        let rng = StdRng::seed_from_u64(sampling.seed);
        Self { sampling, rng, written: Vec::new() }
    }

    /// Counts a token as written that was not drawn (forced into the reasoning).
    pub fn observe(&mut self, token: u32) {
        self.written.push(token);
    }

    /// Draws from one row of logits, which is left changed. Not-a-number logits are never drawn; of none at all, token 0 is.
    pub fn draw(&mut self, logits: &mut [f32]) -> u32 {
        self.penalise(logits);
        let token = if self.sampling.temperature <= 0.0 { greedy(logits) } else { self.nucleus(logits) };
        self.written.push(token);
        token
    }

    fn penalise(&mut self, logits: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 || penalty <= 0.0 {
            return;
        }
        self.written.sort_unstable();
        self.written.dedup();
        for token in &self.written {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    fn nucleus(&mut self, logits: &[f32]) -> u32 {
        let peak = logits.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        if !peak.is_finite() {
            return greedy(logits);
        }
        let weigh = |x: &f32| if x.is_nan() { 0.0 } else { ((x - peak) / self.sampling.temperature).exp() };
        // Tokens e^-20 less likely than the best can matter to no draw; dropping them first makes the sort short.
        let mut kept: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, x)| (i as u32, weigh(x))).collect();
        kept.retain(|(_, w)| *w > 2e-9);
        kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.sampling.top_k > 0 {
            kept.truncate(self.sampling.top_k);
        }
        let total: f32 = kept.iter().map(|(_, w)| w).sum();
        let (mut mass, mut nucleus) = (0.0, 0);
        while nucleus < kept.len() && (nucleus == 0 || mass < self.sampling.top_p * total) {
            mass += kept[nucleus].1;
            nucleus += 1;
        }
        let mut at = self.rng.random::<f32>() * mass;
        for (token, weight) in &kept[..nucleus] {
            at -= weight;
            if at <= 0.0 {
                return *token;
            }
        }
        kept[nucleus - 1].0
    }
}

/// The first of the largest logits.
fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (i, *logit);
        }
    }
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals_and_skips_nan() {
        let mut sampler = Sampler::new(Sampling::greedy());
        assert_eq!(sampler.draw(&mut [f32::NAN, 1.0, 3.0, 3.0]), 2);
        assert_eq!(sampler.draw(&mut [f32::NAN; 3]), 0);
    }

    #[test]
    fn a_penalised_token_loses_its_lead_whatever_its_sign() {
        for (lead, second) in [(1.0, 0.8), (-0.8, -1.0)] {
            let sampling = Sampling { repetition_penalty: 1.5, ..Sampling::greedy() };
            let mut sampler = Sampler::new(sampling);
            assert_eq!(sampler.draw(&mut [lead, second]), 0);
            assert_eq!(sampler.draw(&mut [lead, second]), 1);
        }
    }

    #[test]
    fn the_nucleus_never_draws_from_the_tail_and_the_seed_decides() {
        let sampling = Sampling { temperature: 1.0, top_p: 0.6, repetition_penalty: 1.0, ..Sampling::default() };
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling.clone() });
            (0..50).map(|_| sampler.draw(&mut [1.0, 1.0, -3.0, 0.9])).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|t| *t < 2), "two tokens hold 0.6 of the mass");
    }
}
