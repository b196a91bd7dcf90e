//! `[calls]`: what is kept of calls, what is noted, and what raises an alert.

use serde::{Deserialize, Serialize};

/// `[calls]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calls {
    /// Calls that are remembered, and kept in the journal where there is one; then the oldest goes.
    pub kept: usize,
    /// Hours after which an ended call is forgotten and deleted from the journal; 0: never.
    pub hours: f32,
    /// Whether the sound of calls is kept, beside the journal and as long as the call.
    pub record: bool,
    /// The longest call, seconds.
    pub max_seconds: f32,
    /// Whether the model writes a note on each turn and a summary at the end.
    pub notes: bool,
    /// Whether digits are blotted out of the words that are kept.
    pub redact: bool,
    /// Alerts are posted here as JSON; empty: nowhere.
    pub webhook: String,
    /// What raises an alert.
    pub alerts: Vec<Rule>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            kept: 256,
            hours: 720.0,
            record: false,
            max_seconds: 14_400.0,
            notes: true,
            redact: false,
            webhook: String::new(),
            alerts: Vec::new(),
        }
    }
}

/// `[[calls.alerts]]`: one kind of sign (words, a note's mood and risk, an interruption, silence), of one party if it is named, `times` times
/// `within_seconds`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// What the alert is called.
    pub name: String,
    /// Of this party alone, such as `customer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub party: Option<String>,
    /// The turn's mood is one of these.
    pub moods: Vec<String>,
    /// The turn's risk is one of these.
    pub risks: Vec<String>,
    /// The turn's words hold one of these, whatever the case.
    pub words: Vec<String>,
    /// The party interrupts.
    pub interrupts: bool,
    /// Nobody speaks for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_seconds: Option<f64>,
    /// How often; 0 counts as 1.
    pub times: usize,
    /// In how long a time; 0: the whole call.
    pub within_seconds: f64,
}

impl Rule {
    fn is_noted(&self) -> bool {
        !(self.moods.is_empty() && self.risks.is_empty())
    }

    /// How many kinds of sign it asks for.
    pub(super) fn kinds(&self) -> usize {
        let signs = [!self.words.is_empty(), self.is_noted(), self.interrupts, self.silence_seconds.is_some()];
        signs.iter().filter(|is_set| **is_set).count()
    }

    /// Whether any sign can meet it, where turns are noted or not, and digits blotted out or not: each sign is of one kind, and silence of no party.
    pub(super) fn can_fire(&self, notes: bool, redact: bool) -> bool {
        let is_said =
            |word: &String| word.chars().any(char::is_alphanumeric) && !(redact && word.chars().any(char::is_numeric));
        self.kinds() == 1
            && (notes || !self.is_noted())
            && !(self.silence_seconds.is_some() && self.party.is_some())
            && self.words.iter().all(is_said)
    }
}
