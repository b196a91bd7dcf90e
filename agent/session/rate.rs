//! How many responses a session may ask for: an allowance that fills up again evenly.

use std::time::Duration;

use crate::protocol::openai::RateLimit;

/// One session's allowance.
#[derive(Debug)]
pub(super) struct Rate {
    /// Responses a minute, and at once.
    limit: u32,
    left: f64,
    at: Duration,
}

impl Rate {
    /// A full allowance of so many responses a minute.
    pub(super) fn new(limit: u32, now: Duration) -> Self {
        Self { limit, left: limit.into(), at: now }
    }

    /// Whether one more is allowed now.
    pub(super) fn allows(&mut self, now: Duration) -> bool {
        let earned = now.saturating_sub(self.at).as_secs_f64() / 60.0 * f64::from(self.limit);
        (self.left, self.at) = ((self.left + earned).min(self.limit.into()), now);
        self.left >= 1.0
    }

    /// Takes one, and tells what is left.
    pub(super) fn take(&mut self, now: Duration) -> RateLimit {
        let allowed = self.allows(now);
        self.left -= if allowed { 1.0 } else { 0.0 };
        let missing = f64::from(self.limit) - self.left;
        RateLimit {
            name: "requests",
            limit: self.limit,
            remaining: self.left as u32,
            reset_seconds: (missing * 60.0 / f64::from(self.limit) * 1e3).round() / 1e3,
        }
    }
}
