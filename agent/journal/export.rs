//! A conversation as a file: JSON, plain text, WebVTT, SubRip.

use std::fmt::Write as _;

use super::story::{Story, Turn, Who};

/// Letters of a caption, at most: two lines of 42, as broadcasters have it.
const LETTERS: usize = 84;
/// Milliseconds of a caption, at most.
const LONGEST: i64 = 6000;
/// Milliseconds of a caption, at least: shorter ones cannot be read.
const SHORTEST: i64 = 800;
/// Milliseconds that a letter takes to be read, for what was written and not spoken.
const READING: i64 = 60;

/// What file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All that is known.
    Json,
    /// Who said what.
    Text,
    /// Captions for browsers and players.
    WebVtt,
    /// Captions for older players.
    SubRip,
}

impl Form {
    /// By the end of a file's name.
    pub fn of(extension: &str) -> Option<Self> {
        match extension {
            "json" => Some(Self::Json),
            "txt" => Some(Self::Text),
            "vtt" => Some(Self::WebVtt),
            "srt" => Some(Self::SubRip),
            _ => None,
        }
    }

    /// As HTTP names it.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::WebVtt => "text/vtt; charset=utf-8",
            Self::SubRip => "application/x-subrip; charset=utf-8",
        }
    }

    /// The file. `heard_only` leaves out what was typed and what the model said: the captions of what was spoken.
    pub fn write(self, story: &Story, heard_only: bool) -> String {
        match self {
            Self::Json => serde_json::to_string_pretty(story).expect("a story is plain maps with string keys"),
            Self::Text => text(story),
            Self::WebVtt => {
                let mut out = String::from("WEBVTT\n");
                for cue in cues(story, heard_only) {
                    let who = if heard_only { String::new() } else { format!("<v {}>", name(cue.who)) };
                    let words = cue.words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                    let _ = write!(out, "\n{} --> {}\n{who}{words}\n", clock(cue.begins, '.'), clock(cue.ends, '.'));
                }
                out
            }
            Self::SubRip => {
                let mut out = String::new();
                for (n, cue) in cues(story, heard_only).into_iter().enumerate() {
                    let who = if heard_only { String::new() } else { format!("{}: ", name(cue.who)) };
                    let times = format!("{} --> {}", clock(cue.begins, ','), clock(cue.ends, ','));
                    // A line that is only blank would end the caption.
                    let _ = write!(out, "{}\n{times}\n{who}{}\n\n", n + 1, cue.words);
                }
                out
            }
        }
    }
}

/// One caption, milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cue {
    /// Who speaks.
    pub who: Who,
    /// From.
    pub begins: i64,
    /// Until.
    pub ends: i64,
    /// One line, without line ends.
    pub words: String,
}

fn name(who: Who) -> &'static str {
    if who == Who::User { "You" } else { "Hearken" }
}

fn text(story: &Story) -> String {
    let mut out = format!("{}\n", if story.head.title.is_empty() { &story.head.id } else { &story.head.title });
    for turn in &story.turns {
        let time = clock(turn.begins_ms, '.');
        let words = if turn.words.is_empty() { "(no words written down)" } else { &turn.words };
        let _ = write!(out, "\n[{}] {}: {words}\n", &time[..time.len() - 4], name(turn.who));
    }
    out
}

/// `HH:MM:SS.mmm`
fn clock(ms: i64, point: char) -> String {
    let ms = ms.max(0);
    format!("{:02}:{:02}:{:02}{point}{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

/// The captions, in order. Within a turn the time of each word lies between the times at which the words around it were told.
pub fn cues(story: &Story, heard_only: bool) -> Vec<Cue> {
    let turns: Vec<&Turn> = story.turns.iter().filter(|turn| !heard_only || turn.spoken).collect();
    let until = |n: usize| turns.get(n + 1).map_or(i64::MAX, |next| next.begins_ms);
    let lines = turns.iter().enumerate().flat_map(|(n, turn)| in_lines(turn.who, words(turn, until(n))));
    let mut cues: Vec<Cue> = lines.collect();
    // Times never run backwards, and one is over when the next begins.
    cues.sort_by_key(|cue| cue.begins);
    for n in 1..cues.len() {
        let next = cues[n].begins;
        if cues[n - 1].begins < next {
            cues[n - 1].ends = cues[n - 1].ends.min(next);
        }
    }
    cues
}

/// Each word with its times. What is read is over when the next turn begins, at `until`.
fn words(turn: &Turn, until: i64) -> Vec<(i64, i64, &str)> {
    let whole: Vec<&str> = turn.words.split_whitespace().collect();
    // Up to which word, and when.
    let mut marks: Vec<(usize, i64)> = Vec::new();
    let mut told = String::new();
    for (at, piece) in &turn.pieces {
        told.push_str(piece);
        marks.push((told.split_whitespace().count().min(whole.len()), *at));
    }
    let last = if turn.spoken {
        if turn.ends_ms > turn.begins_ms { turn.ends_ms } else { marks.last().map_or(turn.begins_ms, |mark| mark.1) }
    } else {
        let read = turn.begins_ms + 1000 + READING * turn.words.chars().count() as i64;
        read.min(until.max(turn.begins_ms + SHORTEST))
    };
    if !turn.spoken {
        marks.clear();
    }
    marks.push((whole.len(), last));
    let (mut from, mut time) = (0, turn.begins_ms);
    let mut timed = Vec::with_capacity(whole.len());
    for (to, at) in marks {
        let (count, end) = (to.saturating_sub(from) as i64, at.clamp(time, last.max(time)));
        for (i, word) in whole[from..to.max(from)].iter().enumerate() {
            let share = |i: i64| time + (end - time) * i / count;
            timed.push((share(i as i64), share(i as i64 + 1), *word));
        }
        (from, time) = (to.max(from), end);
    }
    timed
}

fn in_lines(who: Who, words: Vec<(i64, i64, &str)>) -> Vec<Cue> {
    let mut cues: Vec<Cue> = Vec::new();
    let mut is_full = true;
    for (begins, ends, word) in words {
        match cues.last_mut().filter(|cue| {
            !is_full && cue.words.chars().count() + 1 + word.chars().count() <= LETTERS && ends - cue.begins <= LONGEST
        }) {
            Some(cue) => {
                cue.words.push(' ');
                cue.words.push_str(word);
                cue.ends = ends;
            }
            None => cues.push(Cue { who, begins, ends, words: word.to_owned() }),
        }
        // A sentence's end is a good place to break, once there is something to read.
        is_full = word.ends_with(['.', '?', '!']) && cues.last().is_some_and(|cue| cue.words.len() > LETTERS / 3);
    }
    for i in 0..cues.len() {
        let next = cues.get(i + 1).map_or(i64::MAX, |cue| cue.begins.max(cues[i].begins + 1));
        cues[i].ends = cues[i].ends.max(cues[i].begins + SHORTEST).min(next);
    }
    cues
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::reader::Head;
    use super::*;

    fn turn(who: Who, spoken: bool, words: &str, begins_ms: i64, ends_ms: i64) -> Turn {
        Turn {
            id: String::new(),
            who,
            spoken,
            words: words.into(),
            reasoning: String::new(),
            begins_ms,
            ends_ms,
            status: None,
            status_details: Value::Null,
            timings_ms: Value::Null,
            pieces: Vec::new(),
        }
    }

    #[test]
    fn captions_never_run_backwards_nor_over_one_another() {
        let head = Head {
            id: "conv_1".into(),
            object: "conversation",
            kind: "chat".into(),
            model: "nano".into(),
            title: String::new(),
            created_ms: 0,
            updated_ms: 0,
        };
        // A long reply takes longer to be read than the person waits, who then breaks in.
        let reply = "All of this is told at some length. ".repeat(9);
        let turns = vec![
            turn(Who::User, true, "Tell me all of it.", 1000, 3000),
            turn(Who::Agent, false, reply.trim(), 5000, 9000),
            turn(Who::User, true, "Stop.", 12_000, 12_300),
            turn(Who::Agent, false, "Yes.", 12_500, 12_600),
        ];
        let cues = cues(&Story { head, last_event: 0, turns, sound_ms: None }, false);
        assert!(cues.len() > 5, "{cues:?}");
        for pair in cues.windows(2) {
            assert!(pair[0].begins < pair[1].begins && pair[0].ends <= pair[1].begins, "{pair:?}");
        }
        assert!(cues.iter().all(|cue| cue.begins < cue.ends), "{cues:?}");
        assert_eq!((cues[0].begins, cues.last().map(|cue| cue.words.as_str())), (1000, Some("Yes.")));
    }
}
