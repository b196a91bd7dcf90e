//! How a download shows itself: a bar on a terminal, plain lines elsewhere, nothing in tests.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Told what happens while a checkpoint is fetched.
pub trait Progress {
    /// A sentence for the user.
    fn note(&mut self, line: &str);
    /// `file` of `total` bytes begins, `have` of them already here.
    fn start(&mut self, file: &str, total: u64, have: u64);
    /// `bytes` more have arrived.
    fn advance(&mut self, bytes: u64);
    /// The file's transfer is over, for better or worse.
    fn finish(&mut self);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn note(&mut self, _: &str) {}
    fn start(&mut self, _: &str, _: u64, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}

/// What a command line wants, on standard error: standard output stays free for the result.
pub fn terminal() -> Box<dyn Progress> {
    if stderr().is_terminal() { Box::new(Bar(ProgressBar::hidden())) } else { Box::new(Lines::default()) }
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn note(&mut self, line: &str) {
        self.0.suspend(|| eprintln!("{line}"));
    }

    fn start(&mut self, file: &str, total: u64, have: u64) {
        let style = ProgressStyle::with_template("{msg}  {wide_bar}  {bytes} of {total_bytes}  {bytes_per_sec}  {eta}")
            .expect("a template known at compile time is valid");
        // `with_elapsed` of nothing: bytes that were here before do not count as speed.
        self.0 = ProgressBar::new(total).with_position(have).with_style(style).with_message(file.to_owned());
        self.0.reset_eta();
    }

    fn advance(&mut self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

/// One line at the start of a file and one every ten seconds, for logs.
#[derive(Default)]
struct Lines {
    file: String,
    total: u64,
    done: u64,
    last: Option<Instant>,
}

impl Progress for Lines {
    fn note(&mut self, line: &str) {
        eprintln!("{line}");
    }

    fn start(&mut self, file: &str, total: u64, have: u64) {
        *self = Self { file: file.into(), total, done: have, last: Some(Instant::now()) };
        match have {
            0 => eprintln!("{file}: {}", HumanBytes(total)),
            _ => eprintln!("{file}: {}, going on after {}", HumanBytes(total), HumanBytes(have)),
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.last.is_some_and(|last| last.elapsed() > Duration::from_secs(10)) {
            self.last = Some(Instant::now());
            eprintln!("{}: {} of {}", self.file, HumanBytes(self.done), HumanBytes(self.total));
        }
    }

    fn finish(&mut self) {}
}
