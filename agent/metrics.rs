//! Counters of this process, written as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// One process's counters. All are plain sums, so nothing is lost between two scrapes.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Sessions alive now.
    pub sessions_active: AtomicI64,
    /// Sessions ever begun.
    pub sessions: AtomicU64,
    /// Connections refused because all places were taken.
    pub refused_busy: AtomicU64,
    /// Requests refused for a missing or wrong token.
    pub refused_auth: AtomicU64,
    /// Requests refused for a foreign Origin or Host.
    pub refused_origin: AtomicU64,
    /// Turns handed to the engine.
    pub turns: AtomicU64,
    /// Of these, given up before their end.
    pub turns_cancelled: AtomicU64,
    /// Of these, failed.
    pub turns_failed: AtomicU64,
    /// 16 kHz samples taken in.
    pub samples: AtomicU64,
    /// Of these, dropped because the session did not keep up.
    pub samples_dropped: AtomicU64,
    /// Events refused with an `error`.
    pub client_errors: AtomicU64,
    /// Clients disconnected because they read too slowly.
    pub slow_clients: AtomicU64,
    /// Calls begun by WebRTC or WHIP.
    pub calls: AtomicU64,
    /// Readers of server-sent events.
    pub event_streams: AtomicU64,
    /// RTP packets taken in.
    pub rtp_packets: AtomicU64,
    /// Of these, those that came after they were given up.
    pub rtp_late: AtomicU64,
    /// What RTP packets waited for others, microseconds.
    pub rtp_waited: AtomicU64,
    /// 16 kHz samples recovered from copies in later packets.
    pub rtp_recovered: AtomicU64,
    /// 16 kHz samples made up because of loss.
    pub rtp_concealed: AtomicU64,
    /// Sessions that ended by a panic: each is a bug.
    pub session_panics: AtomicU64,
    /// Sessions that a client came back to.
    pub sessions_resumed: AtomicU64,
    /// Records that the journal has written.
    pub journal_records: AtomicU64,
    /// Records that it could not take or write.
    pub journal_lost: AtomicU64,
    /// Events that were sent before their record was written, because that took too long.
    pub journal_late: AtomicU64,
    /// Transactions of the journal.
    pub journal_commits: AtomicU64,
    /// How long these took, microseconds.
    pub journal_commit_micros: AtomicU64,
}

/// Counts one. Relaxed is enough: nothing else is ordered by these.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Metrics {
    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, kind: &str, help: &str, value: i128| {
            let _ = writeln!(out, "# HELP hearken_{name} {help}\n# TYPE hearken_{name} {kind}\nhearken_{name} {value}");
        };
        line("sessions_active", "gauge", "Sessions alive now.", self.sessions_active.load(Relaxed).into());
        for (name, help, counter) in [
            ("sessions_total", "Sessions begun.", &self.sessions),
            ("refused_busy_total", "Connections refused because all places were taken.", &self.refused_busy),
            ("refused_auth_total", "Requests refused for a missing or wrong token.", &self.refused_auth),
            ("refused_origin_total", "Requests refused for a foreign Origin or Host.", &self.refused_origin),
            ("turns_total", "Turns handed to the engine.", &self.turns),
            ("turns_cancelled_total", "Turns given up before their end.", &self.turns_cancelled),
            ("turns_failed_total", "Turns that failed.", &self.turns_failed),
            ("audio_samples_total", "16 kHz samples taken in.", &self.samples),
            ("audio_samples_dropped_total", "16 kHz samples dropped, oldest first.", &self.samples_dropped),
            ("client_errors_total", "Client events answered with an error.", &self.client_errors),
            ("slow_clients_total", "Clients disconnected because they read too slowly.", &self.slow_clients),
            ("calls_total", "Calls begun by WebRTC or WHIP.", &self.calls),
            ("event_streams_total", "Readers of server-sent events.", &self.event_streams),
            ("rtp_packets_total", "RTP packets taken in.", &self.rtp_packets),
            ("rtp_late_total", "RTP packets that came too late.", &self.rtp_late),
            ("rtp_waited_microseconds_total", "What RTP packets waited for missing ones.", &self.rtp_waited),
            (
                "rtp_recovered_samples_total",
                "16 kHz samples recovered by forward error correction.",
                &self.rtp_recovered,
            ),
            ("rtp_concealed_samples_total", "16 kHz samples made up because of loss.", &self.rtp_concealed),
            ("session_panics_total", "Sessions ended by a panic.", &self.session_panics),
            ("sessions_resumed_total", "Sessions that a client came back to.", &self.sessions_resumed),
            ("journal_records_total", "Records written to the journal.", &self.journal_records),
            ("journal_lost_total", "Records that the journal could not take or write.", &self.journal_lost),
            ("journal_late_total", "Events sent before their record was written.", &self.journal_late),
            ("journal_commits_total", "Transactions of the journal.", &self.journal_commits),
            ("journal_commit_microseconds_total", "Time these took.", &self.journal_commit_micros),
        ] {
            line(name, "counter", help, counter.load(Relaxed).into());
        }
        out
    }
}
