//! The sound of a call on its way to its file: one party a channel, written as it comes, so that what was heard until this process ended can be played.
//!
//! ```text
//!  Live -> pieces of each party (bounded) -> one thread: side by side by their times -> Ogg Opus -> file
//! ```
//! A disk that does not keep up costs sound, which is silence on the tape, and never the call.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::oneshot;

use crate::audio::ogg::{FRAME, OggOpus};
use crate::audio::{AudioError, RATE};

/// Pieces that may wait: some ten seconds of two parties on a phone line.
const PIECES: usize = 1024;
/// One who is so far behind the other says nothing: 10 s.
const BEHIND: usize = 10 * RATE as usize;

struct Piece {
    party: usize,
    /// Where it begins, samples into the call.
    at: u64,
    samples: Vec<f32>,
}

/// A tape that runs. Dropping it ends it.
pub(super) struct Tape {
    pieces: SyncSender<Piece>,
    /// Samples that came of each party.
    heard: Vec<u64>,
}

impl Tape {
    /// Begins a tape. The receiver hears when all of it is written, or nothing more will be.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(super) fn begin(path: &Path, parties: usize) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (pieces, queue) = sync_channel(PIECES);
        let (written, is_written) = oneshot::channel();
        let path = path.to_owned();
        std::thread::Builder::new().name("tape".into()).spawn(move || {
            if let Err(error) = write(&path, parties, &queue) {
                tracing::error!(path = %path.display(), %error, "the sound of a call is not kept from here on");
            }
            // Nobody may be waiting.
            let _ = written.send(());
        })?;
        Ok((Self { pieces, heard: vec![0; parties] }, is_written))
    }

    /// The next samples of a party. It waits for the disk if that is allowed.
    pub(super) fn hear(&mut self, party: usize, samples: &[f32], may_wait: bool) {
        let Some(heard) = self.heard.get_mut(party).filter(|_| !samples.is_empty()) else { return };
        let piece = Piece { party, at: *heard, samples: samples.to_vec() };
        *heard += samples.len() as u64;
        if may_wait {
            drop(self.pieces.send(piece));
        } else {
            drop(self.pieces.try_send(piece));
        }
    }
}

fn write(path: &Path, parties: usize, pieces: &Receiver<Piece>) -> io::Result<()> {
    // A call that was none leaves nothing.
    let Ok(first) = pieces.recv() else { return Ok(()) };
    let mut file = create(path)?;
    let mut bytes = Vec::new();
    let mut ogg = OggOpus::begin(parties, rand::random(), &mut bytes).map_err(io::Error::other)?;
    let mut lanes = Lanes::new(parties);
    for piece in std::iter::once(first).chain(pieces.iter()) {
        lanes.put(&piece, &mut |frame| ogg.push(frame, &mut bytes)).map_err(io::Error::other)?;
        // In one piece, so that a reader finds whole pages.
        file.write_all(&bytes)?;
        bytes.clear();
    }
    let length = lanes.length();
    lanes.give(true, &mut |frame| ogg.push(frame, &mut bytes)).map_err(io::Error::other)?;
    ogg.end(length, &mut bytes).map_err(io::Error::other)?;
    file.write_all(&bytes)
}

/// Only its owner may read it, from its first byte on.
fn create(path: &Path) -> io::Result<File> {
    let (mut folders, mut options) = (DirBuilder::new(), OpenOptions::new());
    folders.recursive(true);
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        std::os::unix::fs::DirBuilderExt::mode(&mut folders, 0o700);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    if let Some(folder) = path.parent() {
        folders.create(folder)?;
    }
    options.open(path)
}

/// The parties side by side.
struct Lanes {
    /// Samples that were given of each.
    given: u64,
    waiting: Vec<VecDeque<f32>>,
}

/// Takes a frame of all parties, interleaved.
type Out<'a> = dyn FnMut(&[f32]) -> Result<(), AudioError> + 'a;

impl Lanes {
    fn new(parties: usize) -> Self {
        Self { given: 0, waiting: vec![VecDeque::new(); parties] }
    }

    /// How long the longest is, samples.
    fn length(&self) -> u64 {
        self.given + self.waiting.iter().map(VecDeque::len).max().unwrap_or(0) as u64
    }

    fn put(&mut self, Piece { party, at, samples }: &Piece, out: &mut Out<'_>) -> Result<(), AudioError> {
        let end = |lanes: &Self| lanes.given + lanes.waiting[*party].len() as u64;
        // What was lost before it is silence; frame by frame, for it may be long.
        while end(self) < *at {
            let some = FRAME.min((*at - end(self)) as usize);
            self.waiting[*party].extend(std::iter::repeat_n(0.0, some));
            self.give(false, out)?;
        }
        // What had been taken for silence already is too late.
        let late = (end(self) - *at) as usize;
        self.waiting[*party].extend(samples.get(late..).unwrap_or_default());
        self.give(false, out)
    }

    /// Gives the frames that all parties have, or of which one has had its time; at the end all that there is.
    fn give(&mut self, is_end: bool, out: &mut Out<'_>) -> Result<(), AudioError> {
        loop {
            let lengths = self.waiting.iter().map(VecDeque::len);
            let (shortest, longest) = (lengths.clone().min().unwrap_or(0), lengths.max().unwrap_or(0));
            if shortest < FRAME && longest < if is_end { 1 } else { BEHIND } {
                return Ok(());
            }
            let mut frame = Vec::with_capacity(FRAME * self.waiting.len());
            for _ in 0..FRAME {
                frame.extend(self.waiting.iter_mut().map(|lane| lane.pop_front().unwrap_or(0.0)));
            }
            self.given += FRAME as u64;
            out(&frame)?;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What comes of these pieces, lane by lane.
    fn lanes(pieces: &[(usize, u64, Vec<f32>)]) -> Vec<Vec<f32>> {
        let (mut lanes, mut all) = (Lanes::new(2), Vec::new());
        let mut out = |frame: &[f32]| {
            all.extend_from_slice(frame);
            Ok(())
        };
        for (party, at, samples) in pieces {
            lanes.put(&Piece { party: *party, at: *at, samples: samples.clone() }, &mut out).unwrap();
            assert!(lanes.waiting.iter().all(|lane| lane.len() < 2 * BEHIND), "memory is bounded");
        }
        let length = lanes.length() as usize;
        lanes.give(true, &mut out).unwrap();
        (0..2).map(|n| all.iter().skip(n).step_by(2).copied().take(length).collect()).collect()
    }

    #[test]
    fn each_stands_where_it_was_said() {
        let ones = |n: usize| vec![1.0; n];
        // The second begins late, and a piece of the first is lost.
        let heard = lanes(&[(0, 0, ones(1000)), (1, 2000, ones(500)), (0, 3000, ones(10)), (1, 2500, ones(1000))]);
        assert_eq!((heard[0].len(), heard[1].len()), (3500, 3500));
        let is_said = |lane: &[f32], from: usize, to: usize| lane[from..to].iter().all(|x| *x == 1.0);
        let is_silent = |lane: &[f32], from: usize, to: usize| lane[from..to].iter().all(|x| *x == 0.0);
        assert!(is_said(&heard[0], 0, 1000) && is_silent(&heard[0], 1000, 3000) && is_said(&heard[0], 3000, 3010));
        assert!(is_silent(&heard[0], 3010, 3500));
        assert!(is_silent(&heard[1], 0, 2000) && is_said(&heard[1], 2000, 3500));
    }

    #[test]
    fn one_who_is_far_behind_is_silent_until_he_comes_and_hours_are_not_held() {
        let hour = 3600 * u64::from(RATE);
        let heard = lanes(&[(0, hour, vec![1.0; 10]), (1, 0, vec![1.0; 100]), (1, hour, vec![1.0; 10])]);
        assert_eq!(heard[0].len(), hour as usize + 10);
        assert_eq!(heard[1][..100], [0.0; 100], "too late");
        assert_eq!((heard[0][hour as usize + 5], heard[1][hour as usize + 5]), (1.0, 1.0));
    }

    #[test]
    fn a_call_that_was_none_leaves_no_file_and_one_that_was_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (tape, written) = Tape::begin(&folder.path().join("a/none.ogg"), 2).unwrap();
        drop(tape);
        written.blocking_recv().unwrap();
        assert!(!folder.path().join("a").exists());
        let path = folder.path().join("a/some.ogg");
        let (mut tape, written) = Tape::begin(&path, 2).unwrap();
        tape.hear(0, &vec![0.1; 40_000], true);
        tape.hear(1, &vec![0.1; 20_000], true);
        tape.hear(2, &[0.1], true);
        drop(tape);
        written.blocking_recv().unwrap();
        let seconds = crate::audio::file::read(&path, 60.0).unwrap().len();
        assert_eq!(seconds, 40_000);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        }
    }
}
