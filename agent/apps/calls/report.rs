//! What is known of a call: its parties in figures, its turns, its silence. As JSON or CSV.

use std::fmt::Write as _;

use serde::Serialize;

use super::measure::trend;
use super::{Call, Turn};

/// One party in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Party {
    /// Its name.
    pub name: String,
    /// Seconds of speech.
    pub talk_seconds: f64,
    /// Of all speech, 0 to 1.
    pub talk_ratio: f64,
    /// How often it spoke.
    pub turns: usize,
    /// How often it broke into another's turn.
    pub interruptions: usize,
    /// Of the turns whose words are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words_per_minute: Option<f64>,
    /// Syllables a second of speech, from the signal.
    pub syllables_per_second: f64,
    /// Mean of its turns, dB below full scale.
    pub loudness_db: f64,
    /// How that changes, dB a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loudness_trend: Option<f64>,
    /// Mean of its turns' medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitch_hz: Option<f64>,
    /// How that changes, semitones a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pitch_trend: Option<f64>,
}

/// When nobody spoke.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Silence {
    /// All of it.
    pub seconds: f64,
    /// The longest stretch.
    pub longest_seconds: f64,
}

/// A turn with its party's name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Who speaks.
    pub party: String,
    /// The turn.
    #[serde(flatten)]
    pub turn: Turn,
}

/// A call as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How long it lasted, or has lasted.
    pub seconds: f64,
    /// In the order of the tracks.
    pub parties: Vec<Party>,
    /// When nobody spoke.
    pub silence: Silence,
    /// In the order of speech.
    pub turns: Vec<Line>,
}

impl Report {
    /// Of this call, now.
    pub fn of(call: &Call) -> Self {
        let talk = sum(call.turns().iter().map(length));
        let parties = call.names().iter().enumerate().map(|(n, name)| {
            let turns: Vec<&Turn> = call.turns().iter().filter(|turn| turn.party == n).collect();
            party(name, &turns, talk)
        });
        let mut turns: Vec<Line> = call.turns().iter().map(|turn| Line::of(call, turn)).collect();
        turns.sort_by(|a, b| a.turn.start.total_cmp(&b.turn.start));
        Self { seconds: call.seconds(), parties: parties.collect(), silence: silence(&turns, call), turns }
    }

    /// The turns as a table.
    pub fn to_csv(&self) -> String {
        let mut out =
            "start,end,party,interrupts,loudness_db,pitch_hz,syllables_per_second,mood,risk,words,note\r\n".to_owned();
        for Line { party, turn } in &self.turns {
            let pitch = turn.measures.pitch_hz.map(|hz| format!("{hz:.1}")).unwrap_or_default();
            let note = turn.note.as_ref();
            let _ = write!(
                out,
                "{:.3},{:.3},{},{},{:.1},{pitch},{:.2},{},{},{},{}\r\n",
                turn.start,
                turn.end,
                cell(party),
                turn.interrupts,
                turn.measures.loudness_db,
                turn.measures.syllables_per_second,
                note.map_or("", |note| note.mood),
                note.map_or("", |note| note.risk),
                cell(turn.words.as_deref().unwrap_or_default()),
                cell(note.map_or("", |note| &note.text)),
            );
        }
        out
    }
}

impl Line {
    /// A turn of a call.
    pub fn of(call: &Call, turn: &Turn) -> Self {
        Self { party: call.names()[turn.party].clone(), turn: turn.clone() }
    }
}

/// RFC 4180, and what a spreadsheet would take for a formula is text.
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("\"{guard}{}\"", text.replace('"', "\"\"").replace(['\r', '\n'], " "))
}

fn length(turn: &Turn) -> f64 {
    turn.end - turn.start
}

/// Of nothing it is 0, where `Iterator::sum` has −0.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0_u32), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

fn party(name: &str, turns: &[&Turn], talk: f64) -> Party {
    let own = sum(turns.iter().map(|turn| length(turn)));
    let read: Vec<(&str, f64)> = turns.iter().filter_map(|turn| Some((turn.words.as_deref()?, length(turn)))).collect();
    let minutes = sum(read.iter().map(|(_, seconds)| seconds / 60.0));
    let words = read.iter().map(|(words, _)| words.split_whitespace().count()).sum::<usize>();
    let over = |value: fn(&Turn) -> Option<f64>| -> Vec<(f64, f64)> {
        turns.iter().filter_map(|turn| Some((turn.start / 60.0, value(turn)?))).collect()
    };
    let loudness = over(|turn| Some(f64::from(turn.measures.loudness_db)));
    let pitch = over(|turn| turn.measures.pitch_hz.map(f64::from));
    let semitones: Vec<(f64, f64)> = pitch.iter().map(|(at, hz)| (*at, 12.0 * hz.log2())).collect();
    let syllables = sum(turns.iter().map(|turn| f64::from(turn.measures.syllables_per_second) * length(turn)));
    Party {
        name: name.to_owned(),
        talk_seconds: own,
        talk_ratio: if talk > 0.0 { own / talk } else { 0.0 },
        turns: turns.len(),
        interruptions: turns.iter().filter(|turn| turn.interrupts).count(),
        words_per_minute: (minutes > 0.0).then(|| words as f64 / minutes),
        syllables_per_second: if own > 0.0 { syllables / own } else { 0.0 },
        loudness_db: mean(loudness.iter().map(|point| point.1)).unwrap_or(-100.0),
        loudness_trend: trend(&loudness),
        pitch_hz: mean(pitch.iter().map(|point| point.1)),
        pitch_trend: trend(&semitones),
    }
}

/// What lies between turns, also those under way.
fn silence(turns: &[Line], call: &Call) -> Silence {
    let all = call.seconds();
    let mut spans: Vec<(f64, f64)> = turns.iter().map(|line| (line.turn.start, line.turn.end)).collect();
    spans.extend(call.under_way().map(|start| (start, all)).chain([(all, all)]));
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut seconds, mut longest, mut until) = (0.0, 0_f64, 0.0);
    for (start, end) in spans {
        let gap = (start - until).max(0.0);
        seconds += gap;
        longest = longest.max(gap);
        until = end.max(until);
    }
    Silence { seconds, longest_seconds: longest }
}
