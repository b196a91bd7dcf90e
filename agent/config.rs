//! The one configuration: a typed TOML, checked once, then only read.
//!
//! Later layers win: the built-in preset, a file, the environment (`HEARKEN_SERVER_LISTEN` is `server.listen`), flags
//! (`server.listen=…`). Unknown keys are refused in each of them, and every complaint names its key.

mod calls;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use calls::{Calls, Rule};

/// The presets that are built in, by name. `nano` is the default and holds the defaults of every key.
pub const PRESETS: &[(&str, &str)] = &[
    ("nano", include_str!("../configs/nano.toml")),
    ("step-audio-r1", include_str!("../configs/step-audio-r1.toml")),
    ("step-audio-2-mini", include_str!("../configs/step-audio-2-mini.toml")),
];

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen, and who may come in.
    pub server: Server,
    /// What listens and thinks.
    pub model: Model,
    /// How tokens are drawn.
    pub sampling: crate::engine::Sampling,
    /// How long it reasons and replies.
    pub thinking: Thinking,
    /// When somebody speaks, and when a turn is over.
    pub voice: Voice,
    /// What one client may take.
    pub limits: Limits,
    /// Requests that are no session.
    pub http: Http,
    /// What is kept of conversations.
    pub journal: Journal,
    /// How sound comes by WebRTC.
    pub webrtc: Webrtc,
    /// What is kept of calls, and what raises an alert.
    pub calls: Calls,
    /// What is written to the log.
    pub log: Log,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address and port; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Any of these opens the door. Empty means no authentication.
    pub api_tokens: Vec<Secret>,
    /// Allows to listen beyond loopback without a token.
    pub allow_anonymous: bool,
    /// Live sessions at one time; the next one gets 503.
    pub max_sessions: usize,
    /// Other sites whose pages may connect, as `https://host[:port]`. Pages served here may always.
    pub allowed_origins: Vec<String>,
    /// At shutdown, how long sessions have to say goodbye, seconds.
    pub drain_seconds: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            api_tokens: Vec::new(),
            allow_anonymous: false,
            max_sessions: 16,
            allowed_origins: Vec::new(),
            drain_seconds: 5,
        }
    }
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A known model's name, as `hearken fetch` takes it.
    pub name: String,
    /// Where its files are; absent means where `hearken fetch` puts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `auto`, `cpu`, `cuda:N` or `metal`.
    pub device: String,
    /// Whether the word ear's text is given to the reasoning, where the checkpoint has that ear.
    pub words: Words,
    /// Compute threads; 0 takes one for each core.
    pub threads: usize,
    /// How keys and values are stored on a CPU: `f32`, `f16`, `bf16` or `q8`. A GPU stores what it computes with.
    pub kv: crate::engine::KvType,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            name: "nano".into(),
            path: None,
            device: "auto".into(),
            words: Words::Beside,
            threads: 0,
            kv: Default::default(),
        }
    }
}

/// What becomes of the word ear's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Words {
    /// The reasoning reads it beside the sound.
    Beside,
    /// The model hears the sound alone.
    None,
}

/// How hard to think, in the words of the Realtime API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Reply at once.
    None,
    /// As `None`.
    Minimal,
    /// The least budget.
    Low,
    /// The middle budget.
    Medium,
    /// The largest budget.
    High,
    /// As `High`.
    Xhigh,
}

/// `[thinking]`, in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thinking {
    /// What a session begins with.
    pub effort: Effort,
    /// Reasoning is closed after so many tokens at `low`.
    pub low: usize,
    /// At `medium`.
    pub medium: usize,
    /// At `high`.
    pub high: usize,
    /// At `high`, so many minds think on the same prefix, and what most of them reply is the reply.
    pub minds: usize,
    /// A reply ends after so many tokens.
    pub max_reply_tokens: usize,
    /// When the reply may begin.
    pub pace: crate::engine::Pace,
    /// Whether thinking begins at a short pause, before it is sure that the turn is over.
    pub speculate: bool,
    /// What the model is told before the conversation, unless the client says otherwise.
    pub instructions: String,
}

impl Default for Thinking {
    fn default() -> Self {
        Self {
            effort: Effort::Medium,
            low: 64,
            medium: 160,
            high: 512,
            minds: 1,
            max_reply_tokens: 512,
            pace: crate::engine::Pace::ThinkBefore,
            speculate: true,
            instructions: String::new(),
        }
    }
}

impl Thinking {
    /// Whether to reason at all at this effort, and for how many tokens.
    pub fn budget(&self, effort: Effort) -> Option<usize> {
        match effort {
            Effort::None | Effort::Minimal => None,
            Effort::Low => Some(self.low),
            Effort::Medium => Some(self.medium),
            Effort::High | Effort::Xhigh => Some(self.high),
        }
    }
}

/// Which voice detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detector {
    /// A small network (crate earshot).
    Neural,
    /// Loudness over the noise floor.
    Energy,
}

/// `[voice]`. A client may change the middle three for its session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Voice {
    /// Which detector.
    pub detector: Detector,
    /// A frame at or above this probability is voice.
    pub threshold: f32,
    /// Sound kept from before the first voice.
    pub prefix_padding_ms: u32,
    /// Sound kept after the last voice, and silence after which thinking begins: so much of a pause belongs to the turn.
    pub pause_ms: u32,
    /// Silence that ends a turn.
    pub silence_duration_ms: u32,
    /// Where the model is asked (`semantic_vad`): at or above this chance that the speaker has finished, the turn is over at once.
    pub finished_above: f32,
    /// At or below it, the turn goes on as long as the client's eagerness allows; in between silence decides.
    pub unfinished_below: f32,
    /// Voice that begins one: shorter noises do not interrupt.
    pub min_speech_ms: u32,
    /// A turn is handed to the model in segments of at most this length; its encoder takes 25 s.
    pub max_segment_seconds: f32,
    /// Silence after a reply before the model speaks up by itself; 0 means never.
    pub idle_timeout_ms: u32,
}

impl Default for Voice {
    fn default() -> Self {
        Self {
            detector: Detector::Neural,
            threshold: 0.5,
            prefix_padding_ms: 300,
            pause_ms: 200,
            silence_duration_ms: 500,
            finished_above: 0.7,
            unfinished_below: 0.3,
            min_speech_ms: 100,
            max_segment_seconds: 25.0,
            idle_timeout_ms: 0,
        }
    }
}

/// `[limits]`, each per session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest WebSocket message, bytes.
    pub max_message_bytes: usize,
    /// Sound waiting for the session, seconds; then the oldest is dropped and counted.
    pub ring_seconds: f32,
    /// One turn's sound, seconds; a longer turn is committed at this point.
    pub buffered_seconds: f32,
    /// All sound of a conversation, seconds.
    pub conversation_seconds: f32,
    /// Sound that the model still hears, seconds; of what is older it knows the words.
    pub heard_seconds: f32,
    /// Tokens of a conversation, about; then its oldest items go.
    pub conversation_tokens: usize,
    /// Items of a conversation.
    pub conversation_items: usize,
    /// All text of a conversation, instructions and tools, bytes.
    pub conversation_bytes: usize,
    /// Events waiting for a slow reader; then it is disconnected.
    pub send_queue: usize,
    /// Responses that a session may ask for a minute, or at once; 0 means any number.
    pub responses_per_minute: u32,
    /// A session with no word from its client for so long is closed, seconds.
    pub idle_seconds: u64,
    /// Longest file that is heard, by `hearken ask` or as an upload, seconds.
    pub file_seconds: f32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            ring_seconds: 60.0,
            buffered_seconds: 300.0,
            conversation_seconds: 1800.0,
            heard_seconds: 120.0,
            conversation_tokens: 8192,
            conversation_items: 1024,
            conversation_bytes: 1 << 20,
            send_queue: 1024,
            responses_per_minute: 0,
            idle_seconds: 600,
            file_seconds: 3600.0,
        }
    }
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Largest body of a request, bytes.
    pub max_body_bytes: usize,
    /// The field beside `content` in which chat completions tell the reasoning: `reasoning_content` or `reasoning`, as the client expects.
    pub reasoning_field: String,
}

impl Default for Http {
    fn default() -> Self {
        Self { max_body_bytes: 64 << 20, reasoning_field: "reasoning_content".into() }
    }
}

/// `[journal]`: what is kept of conversations, in one SQLite file that only its owner may read.
///
/// It is on unless switched off: people expect to find what was said yesterday, and a conversation to go on after a lost connection or a
/// restart. The sound itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// Whether anything is kept. Without it there is no history, and no conversation outlives its connection.
    pub enabled: bool,
    /// The file; absent means `journal.sqlite` in `HEARKEN_HOME`, else in `~/.local/state/hearken`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Conversations that nobody has touched for so many days are deleted; 0 keeps them.
    pub retention_days: u32,
    /// Whether words are kept. Without them there remain times, counts and what was done; nothing can be resumed from that.
    pub words: bool,
    /// Regular expressions: what they match is blotted out before it is written.
    pub redact: Vec<String>,
    /// After a lost connection a session that its client may resume goes on for so long, seconds.
    pub resume_seconds: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self { enabled: true, path: None, retention_days: 30, words: true, redact: Vec::new(), resume_seconds: 120 }
    }
}

/// `[webrtc]`, for /v1/realtime/calls and /v1/whip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webrtc {
    /// Whether it is served at all.
    pub enabled: bool,
    /// UDP address and port of all sessions; absent means where the server listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// TCP address and port for clients whose network lets no UDP through; absent means that there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_tcp: Option<SocketAddr>,
    /// Addresses under which clients reach this machine through a translator that keeps the port: a container's host, a router.
    pub external_ip: Vec<IpAddr>,
    /// STUN and TURN servers that clients are told of.
    pub ice_servers: Vec<IceServer>,
    /// A peer that has not been heard for so long is gone, seconds; and one that never came.
    pub gone_seconds: u64,
}

impl Default for Webrtc {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: None,
            listen_tcp: None,
            external_ip: Vec::new(),
            ice_servers: Vec::new(),
            gone_seconds: 30,
        }
    }
}

/// One of `webrtc.ice_servers`, as browsers take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IceServer {
    /// `stun:…`, `turn:…` or `turns:…`.
    pub urls: Vec<String>,
    /// For TURN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// For TURN. It is told to every client that may come in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Secret>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a tracing filter such as `hearken=debug,info`.
    pub level: String,
    /// One JSON object a line.
    pub json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), json: false }
    }
}

/// Text that is never shown: printing it gives stars.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Each use is a place to look at twice.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"***\"")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No such preset.
    #[error("no preset `{0}`; there are nano, step-audio-r1 and step-audio-2-mini")]
    UnknownPreset(String),
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{origin}: `{key}`: {message}")]
    Invalid {
        /// The file, variable or flag.
        origin: String,
        /// The key, dotted.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// The value has the right type and cannot be right.
    #[error("`{key}` {message}")]
    Unfit {
        /// The key, dotted.
        key: &'static str,
        /// What is wrong.
        message: &'static str,
    },
}

/// Where a configuration comes from, in the order in which later wins.
#[derive(Debug, Default)]
pub struct Layers<'a> {
    /// A preset's name; `nano` when absent.
    pub preset: Option<&'a str>,
    /// A file's name (for messages) and text.
    pub file: Option<(&'a str, &'a str)>,
    /// The environment. Names other than `HEARKEN_<SECTION>_<KEY>` are passed over.
    pub environment: Vec<(String, String)>,
    /// Flags: dotted key and value.
    pub flags: Vec<(String, String)>,
}

impl Config {
    /// Puts the layers together and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`] names the layer and the key.
    pub fn load(layers: &Layers<'_>) -> Result<Self, ConfigError> {
        let name = layers.preset.unwrap_or("nano");
        let (_, preset) =
            PRESETS.iter().find(|(known, _)| *known == name).ok_or_else(|| ConfigError::UnknownPreset(name.into()))?;
        let mut table = parse(name, preset)?;
        if let Some((origin, text)) = layers.file {
            merge(&mut table, parse(origin, text)?);
        }
        for (variable, value) in &layers.environment {
            if let Some(key) = key_of(variable) {
                set(&mut table, &format!("environment variable {variable}"), &key, value)?;
            }
        }
        for (key, value) in &layers.flags {
            set(&mut table, "flag", key, value)?;
        }
        let config = typed("configuration", table)?;
        config.validate()?;
        Ok(config)
    }

    /// The whole effective configuration as TOML, secrets as stars.
    pub fn effective_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a Config is plain tables, strings and numbers")
    }

    /// # Errors
    /// The first key whose value cannot be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let unfit = |key, message| Err(ConfigError::Unfit { key, message });
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let (s, v, l) = (&self.server, &self.voice, &self.limits);
        if s.api_tokens.is_empty() && !s.listen.ip().is_loopback() && !s.allow_anonymous {
            return unfit(
                "server.api_tokens",
                "is empty: to listen beyond loopback, set one or allow_anonymous = true",
            );
        }
        if s.api_tokens.iter().any(|t| t.expose().trim().is_empty()) {
            return unfit("server.api_tokens", "holds an empty token");
        }
        if s.max_sessions == 0 {
            return unfit("server.max_sessions", "must be at least 1");
        }
        let is_level = |part: &str| {
            let part = part.trim().to_ascii_lowercase();
            part.contains(['=', '[']) || matches!(&*part, "off" | "error" | "warn" | "info" | "debug" | "trace")
        };
        // Any other word is a target, and all others were silent.
        if !self.log.level.split(',').all(is_level) {
            return unfit(
                "log.level",
                "is none of error, warn, info, debug, trace, nor a filter such as hearken=debug,info",
            );
        }
        let device = self.model.device.as_str();
        let cuda = device.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
        if !cuda && !matches!(device, "auto" | "cpu" | "metal") {
            return unfit("model.device", "is none of auto, cpu, cuda:N, metal");
        }
        if !(self.sampling.temperature.is_finite() && self.sampling.temperature >= 0.0) {
            return unfit("sampling.temperature", "must be 0 or more");
        }
        if !(self.sampling.top_p > 0.0 && self.sampling.top_p <= 1.0) {
            return unfit("sampling.top_p", "must be above 0 and at most 1");
        }
        if !positive(self.sampling.repetition_penalty) {
            return unfit("sampling.repetition_penalty", "must be above 0");
        }
        if !(1..=16).contains(&self.thinking.minds) {
            return unfit("thinking.minds", "must be between 1 and 16");
        }
        if self.thinking.max_reply_tokens == 0 {
            return unfit("thinking.max_reply_tokens", "must be at least 1");
        }
        if !(v.threshold > 0.0 && v.threshold < 1.0) {
            return unfit("voice.threshold", "must be between 0 and 1");
        }
        if !(0.0 <= v.unfinished_below && v.unfinished_below < v.finished_above && v.finished_above <= 1.0) {
            return unfit("voice.unfinished_below", "must be below voice.finished_above, and both between 0 and 1");
        }
        if v.prefix_padding_ms > 5000 {
            return unfit("voice.prefix_padding_ms", "must be at most 5000");
        }
        if v.pause_ms > 5000 {
            return unfit("voice.pause_ms", "must be at most 5000");
        }
        if !(50..=20_000).contains(&v.silence_duration_ms) {
            return unfit("voice.silence_duration_ms", "must be between 50 and 20000");
        }
        if v.min_speech_ms > 5000 {
            return unfit("voice.min_speech_ms", "must be at most 5000");
        }
        if !(v.max_segment_seconds >= 1.0 && v.max_segment_seconds <= 25.0) {
            return unfit("voice.max_segment_seconds", "must be between 1 and 25");
        }
        if !positive(l.heard_seconds) {
            return unfit("limits.heard_seconds", "must be above 0");
        }
        if l.conversation_tokens < 256 {
            return unfit("limits.conversation_tokens", "must be at least 256");
        }
        if l.max_message_bytes < 1024 {
            return unfit("limits.max_message_bytes", "must be at least 1024");
        }
        for (key, seconds) in [
            ("limits.ring_seconds", l.ring_seconds),
            ("limits.buffered_seconds", l.buffered_seconds),
            ("limits.conversation_seconds", l.conversation_seconds),
            ("limits.file_seconds", l.file_seconds),
        ] {
            if !(positive(seconds) && (1.0..=86_400.0).contains(&seconds)) {
                return unfit(key, "must be between 1 and 86400");
            }
        }
        if l.conversation_items < 2 {
            return unfit("limits.conversation_items", "must be at least 2");
        }
        if l.conversation_bytes < 1024 {
            return unfit("limits.conversation_bytes", "must be at least 1024");
        }
        if l.send_queue < 16 {
            return unfit("limits.send_queue", "must be at least 16");
        }
        let c = &self.calls;
        if c.kept == 0 {
            return unfit("calls.kept", "must be at least 1");
        }
        if !(c.hours.is_finite() && c.hours >= 0.0) {
            return unfit("calls.hours", "must be 0 or more");
        }
        if !(positive(c.max_seconds) && c.max_seconds <= 86_400.0) {
            return unfit("calls.max_seconds", "must be above 0 and at most 86400");
        }
        if !(c.webhook.is_empty() || c.webhook.starts_with("http://") || c.webhook.starts_with("https://")) {
            return unfit("calls.webhook", "must be an http:// or https:// address, or empty");
        }
        let j = &self.journal;
        if c.record && !j.enabled {
            return unfit("calls.record", "needs journal.enabled = true: the sound lies beside the journal");
        }
        if c.record && (c.redact || !j.words || !j.redact.is_empty()) {
            return unfit(
                "calls.record",
                "cannot go with calls.redact, journal.redact or journal.words = false: sound cannot be blotted out",
            );
        }
        if c.alerts.iter().any(|rule| rule.name.is_empty() || rule.kinds() == 0) {
            return unfit("calls.alerts", "each need a name and at least one condition");
        }
        if !c.alerts.iter().all(|rule| rule.can_fire(c.notes, c.redact)) {
            return unfit(
                "calls.alerts",
                "are each about words, or moods and risks (with calls.notes), or interrupts, or silence_seconds (of no party); words have letters, and no digits with calls.redact",
            );
        }
        if self.http.max_body_bytes < 1024 {
            return unfit("http.max_body_bytes", "must be at least 1024");
        }
        if matches!(&self.http.reasoning_field[..], "" | "role" | "content" | "refusal" | "tool_calls") {
            return unfit("http.reasoning_field", "must be a name of its own");
        }
        if self.webrtc.gone_seconds == 0 {
            return unfit("webrtc.gone_seconds", "must be at least 1");
        }
        if self.webrtc.enabled && self.webrtc.listen_tcp.is_some_and(|tcp| tcp == self.server.listen && tcp.port() > 0)
        {
            return unfit("webrtc.listen_tcp", "must be another port than that of server.listen, where HTTP is served");
        }
        let known = |url: &String| ["stun:", "stuns:", "turn:", "turns:"].iter().any(|s| url.starts_with(s));
        let printable = |url: &String| url.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"".contains(&b));
        if self.webrtc.ice_servers.iter().any(|s| s.urls.is_empty() || !s.urls.iter().all(|u| known(u) && printable(u)))
        {
            return unfit(
                "webrtc.ice_servers",
                "has a server without urls such as \"stun:host:port\" or \"turn:host:port\"",
            );
        }
        if l.idle_seconds == 0 {
            return unfit("limits.idle_seconds", "must be at least 1");
        }
        Ok(())
    }
}

/// Reads one layer alone, so that a complaint can name it; keys keep their absence.
fn parse(origin: &str, text: &str) -> Result<Table, ConfigError> {
    let table: Table = toml::from_str(text).map_err(|e| ConfigError::Invalid {
        origin: origin.into(),
        key: "(syntax)".into(),
        message: e.to_string(),
    })?;
    typed(origin, table.clone())?;
    Ok(table)
}

fn typed(origin: &str, table: Table) -> Result<Config, ConfigError> {
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| ConfigError::Invalid {
        origin: origin.into(),
        key: e.path().to_string(),
        message: e.into_inner().to_string().trim().into(),
    })
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// `HEARKEN_SERVER_API_TOKENS` is `server.api_tokens`; names of no section are not ours.
fn key_of(variable: &str) -> Option<String> {
    let rest = variable.strip_prefix("HEARKEN_")?.to_ascii_lowercase();
    let (section, key) = rest.split_once('_')?;
    matches!(
        section,
        "server"
            | "model"
            | "sampling"
            | "thinking"
            | "voice"
            | "limits"
            | "http"
            | "journal"
            | "calls"
            | "webrtc"
            | "log"
    )
    .then(|| format!("{section}.{key}"))
}

/// Sets one key from text. The text is TOML where that fits; otherwise a string, or a comma-separated list of strings.
fn set(table: &mut Table, origin: &str, dotted: &str, text: &str) -> Result<(), ConfigError> {
    let invalid =
        |message: &str| ConfigError::Invalid { origin: origin.into(), key: dotted.into(), message: message.into() };
    let (section, key) = dotted.split_once('.').ok_or_else(|| invalid("a key is written section.key"))?;
    let listed = || Value::Array(text.split(',').map(|t| Value::String(t.trim().into())).collect());
    let as_toml = toml::from_str::<Table>(&format!("x = {text}")).ok().and_then(|mut t| t.remove("x"));
    let mut refusal = invalid("a value is missing");
    for value in as_toml.into_iter().chain([Value::String(text.into()), listed()]) {
        let mut changed = table.clone();
        let section = changed.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let section = section.as_table_mut().ok_or_else(|| invalid("is no section"))?;
        section.insert(key.into(), value);
        match typed(origin, changed.clone()) {
            Ok(_) => {
                *table = changed;
                return Ok(());
            }
            Err(e) => refusal = e,
        }
    }
    // The value itself stays out of the message: it may be a secret.
    Err(match refusal {
        ConfigError::Invalid { message, .. } if message.contains("unknown field") => invalid(&message),
        _ => invalid("has a value of the wrong kind"),
    })
}
