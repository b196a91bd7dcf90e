//! Repeats our part of a DTLS handshake until the peer goes on.
//!
//! The crate (rtc-dtls 0.21.1, `handshaker.rs`) stops its own clock of repetition at any message of the handshake, one that the peer repeats included, and
//! peers repeat theirs when ours is lost: so a flight of ours that loses one datagram twice would never be whole, and at 10 % loss every sixth call would not
//! begin. Here the datagrams of the last flight are kept and sent again, as they were: a peer takes the records that it lacks and drops the others, as it
//! must with any repetition (RFC 6347, 4.2.4 and 4.1.2.6).

use std::time::Duration;

/// First repeated after so long; each time after twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// So often, the last time after 6 s.
const TIMES: u32 = 6;
/// Datagrams of one flight; ours have six.
const MOST: usize = 16;

/// Change of cipher, alert and handshake, by a datagram's first byte (RFC 6347, 4.1); application data is 23.
const HANDSHAKE: [u8; 2] = [20, 22];
const DATA: u8 = 23;

/// Our last flight.
#[derive(Debug, Default)]
pub(super) struct Flight {
    datagrams: Vec<Vec<u8>>,
    /// Since we last sent, the peer did.
    is_answered: bool,
    /// The peer sends what only follows a finished handshake.
    is_over: bool,
    repeated: u32,
}

impl Flight {
    /// A datagram that we send.
    pub(super) fn sent(&mut self, datagram: &[u8]) {
        if self.is_over || !datagram.first().is_some_and(|first| HANDSHAKE.contains(first)) {
            return;
        }
        if std::mem::take(&mut self.is_answered) {
            self.datagrams.clear();
            self.repeated = 0;
        }
        if self.datagrams.len() < MOST && !self.datagrams.iter().any(|d| d == datagram) {
            self.datagrams.push(datagram.to_vec());
        }
    }

    /// A datagram that the peer sends.
    pub(super) fn received(&mut self, datagram: &[u8]) {
        match datagram.first() {
            Some(first) if HANDSHAKE.contains(first) => self.is_answered = true,
            // Data, or media (RFC 7983).
            Some(&DATA | 128..=191) => self.is_over = true,
            _ => {}
        }
    }

    /// What to send again now. Ask after [`Flight::pause`].
    pub(super) fn again(&mut self) -> &[Vec<u8>] {
        if self.datagrams.is_empty() {
            return &[];
        }
        self.repeated += 1;
        if self.is_over || self.repeated > TIMES { &[] } else { &self.datagrams }
    }

    /// How long to wait before the next repetition; `None` when there is none.
    pub(super) fn pause(&self) -> Option<Duration> {
        (!self.is_over && self.repeated <= TIMES).then(|| FIRST * 2_u32.pow(self.repeated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_flight_is_repeated_until_the_peer_goes_on() {
        let mut flight = Flight::default();
        assert!(flight.again().is_empty(), "nothing sent yet");
        flight.received(&[22, 1]);
        for datagram in [&[22, 2][..], &[22, 3], &[22, 3], &[0, 1], &[200]] {
            flight.sent(datagram);
        }
        assert_eq!(flight.again(), [vec![22, 2], vec![22, 3]], "once each, and nothing but the handshake");
        assert_eq!(flight.pause(), Some(2 * FIRST));
        // The peer repeats itself, and the crate may answer or not.
        flight.received(&[22, 1]);
        assert_eq!(flight.again().len(), 2);
        flight.sent(&[20, 9]);
        assert_eq!(flight.again(), [vec![20, 9]], "the next flight");
        (0..TIMES).for_each(|_| drop(flight.again().to_vec()));
        assert!(flight.again().is_empty() && flight.pause().is_none(), "at some time it is over");
        let mut flight = Flight::default();
        flight.sent(&[22, 2]);
        flight.received(&[23, 1]);
        assert!(flight.again().is_empty() && flight.pause().is_none(), "the peer has all");
    }
}
