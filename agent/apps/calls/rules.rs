//! Alerts: rules of the configuration over the signs that a call gives.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::note::Note;
use crate::config::Rule;

/// Signs of one rule that are remembered.
const REMEMBERED: usize = 64;

/// Something that a rule may look for.
#[derive(Debug, Clone, PartialEq)]
pub enum Sign<'a> {
    /// A turn's words.
    Words(&'a str),
    /// A turn's note.
    Note(&'a Note),
    /// The party interrupts.
    Interruption,
    /// Nobody spoke for longer than the first, and now for the second, seconds: each silence passes a length once.
    Silence(f64, f64),
}

/// A rule has been met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The rule's name.
    pub name: String,
    /// Seconds into the call.
    pub at: f64,
    /// Whose sign it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub party: Option<String>,
}

/// One rule and the times of its signs so far.
#[derive(Debug)]
struct Watch {
    rule: Rule,
    signs: VecDeque<f64>,
}

/// All rules of a call.
#[derive(Debug)]
pub struct Watches(Vec<Watch>);

impl Watches {
    /// Watches for these.
    pub fn new(rules: &[Rule]) -> Self {
        Self(rules.iter().map(|rule| Watch { rule: rule.clone(), signs: VecDeque::new() }).collect())
    }

    /// A sign at this time of the call, of this party if of any; which rules it has met. A rule that was met begins to count anew.
    pub fn see(&mut self, at: f64, party: Option<&str>, sign: &Sign<'_>) -> Vec<Alert> {
        let met = |watch: &mut Watch| {
            let Watch { rule, signs } = watch;
            if !rule.party.as_deref().is_none_or(|wanted| party.is_some_and(|p| p.eq_ignore_ascii_case(wanted)))
                || !holds(rule, sign)
            {
                return None;
            }
            // Words are known in the order in which they are read, which is not quite that of the clock.
            signs.push_back(at);
            if rule.within_seconds > 0.0 {
                signs.retain(|then| (at - then).abs() <= rule.within_seconds);
            }
            if signs.len() > REMEMBERED {
                signs.pop_front();
            }
            if signs.len() < rule.times.clamp(1, REMEMBERED) {
                return None;
            }
            signs.clear();
            Some(Alert { name: rule.name.clone(), at, party: party.map(str::to_owned) })
        };
        self.0.iter_mut().filter_map(met).collect()
    }
}

fn holds(rule: &Rule, sign: &Sign<'_>) -> bool {
    let among = |list: &[String], word: &str| list.iter().any(|each| each.eq_ignore_ascii_case(word));
    match sign {
        Sign::Words(words) => {
            let said = format!(" {} ", plain(words));
            !rule.words.is_empty() && rule.words.iter().any(|word| said.contains(&format!(" {} ", plain(word))))
        }
        // A rule may ask for mood and risk together.
        Sign::Note(note) => {
            let mood = rule.moods.is_empty() || among(&rule.moods, note.mood);
            let risk = rule.risks.is_empty() || among(&rule.risks, note.risk);
            !(rule.moods.is_empty() && rule.risks.is_empty()) && mood && risk
        }
        Sign::Interruption => rule.interrupts,
        Sign::Silence(before, now) => rule.silence_seconds.is_some_and(|least| *before < least && *now >= least),
    }
}

/// In small letters, whatever is no letter or digit being one space.
fn plain(text: &str) -> String {
    let lower = text.to_lowercase();
    let letters: String = lower.chars().map(|c| if c.is_alphanumeric() || c == '\'' { c } else { ' ' }).collect();
    letters.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(mood: &'static str) -> Note {
        Note { mood, risk: "none", text: String::new(), reasoning: String::new() }
    }

    #[test]
    fn angry_twice_within_a_minute() {
        let rule = Rule {
            name: "angry".into(),
            party: Some("customer".into()),
            moods: vec!["angry".into()],
            times: 2,
            within_seconds: 60.0,
            ..Rule::default()
        };
        let mut watches = Watches::new(&[rule]);
        let mut see = |at, party, mood| watches.see(at, Some(party), &Sign::Note(&note(mood))).len();
        assert_eq!(see(0.0, "customer", "angry"), 0);
        assert_eq!(see(10.0, "agent", "angry"), 0, "not of this party");
        assert_eq!(see(61.0, "customer", "angry"), 0, "too long ago");
        assert_eq!(see(70.0, "customer", "calm"), 0);
        assert_eq!(see(90.0, "Customer", "angry"), 1);
        assert_eq!(see(91.0, "customer", "angry"), 0, "it counts anew");
    }

    #[test]
    fn words_silence_and_interruptions() {
        let rules = [
            Rule { name: "words".into(), words: vec!["cancel my contract".into()], ..Rule::default() },
            Rule { name: "silence".into(), silence_seconds: Some(10.0), ..Rule::default() },
            Rule { name: "rude".into(), interrupts: true, times: 2, ..Rule::default() },
        ];
        let mut watches = Watches::new(&rules);
        let mut see = |sign| watches.see(1.0, Some("a"), &sign).into_iter().map(|a| a.name).collect::<Vec<_>>();
        assert_eq!(see(Sign::Words("I'll CANCEL my contract, now!")), ["words"]);
        assert_eq!(see(Sign::Words("I'll cancel my contracts")), [""; 0]);
        assert_eq!(see(Sign::Silence(0.0, 9.0)), [""; 0]);
        assert_eq!(see(Sign::Silence(9.0, 10.5)), ["silence"]);
        assert_eq!(see(Sign::Silence(10.5, 12.0)), [""; 0]);
        assert_eq!(see(Sign::Interruption), [""; 0]);
        assert_eq!(see(Sign::Interruption), ["rude"]);
    }
}
