//! Session descriptions (RFC 8866) as WebRTC and WHIP clients send them: checked before anything is built for them, and the answer as it goes out.
//!
//! Lines of text to lines of text. The WebRTC crate reads the description properly; here stands what it must not be asked, and what it does not say.

use std::fmt::Write as _;

/// The longest offer. Browsers' have some 5 kB.
pub const MOST_BYTES: usize = 64 << 10;
/// The most media sections.
const MOST_SECTIONS: usize = 32;

/// Why a description is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SdpError {
    /// More than [`MOST_BYTES`].
    #[error("a session description has at most 65536 bytes")]
    TooLong,
    /// Not text, or not lines of `letter=value` that begin with `v=0`.
    #[error("this is no session description (RFC 8866): {0}")]
    Malformed(&'static str),
    /// Nothing to be heard.
    #[error("the offer has no audio section that sends Opus")]
    NoAudio,
    /// What WebRTC needs of every offer.
    #[error("the offer has no {0}")]
    Missing(&'static str),
    /// A fragment for a trickled candidate or a restart that is neither.
    #[error("this is no fragment of a session description (RFC 8840)")]
    NoFragment,
}

impl SdpError {
    /// Whether the text is a description, and only what it asks for cannot be had.
    pub fn is_unmet(&self) -> bool {
        matches!(self, Self::NoAudio)
    }
}

/// A new name and password for the connectivity checks: the client restarts ICE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// The name.
    pub ufrag: String,
    /// The password.
    pub password: String,
}

/// An offer that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    text: String,
    /// Whether the client waits for us to begin the DTLS handshake (`setup:passive`).
    pub is_passive: bool,
}

impl Offer {
    /// Reads and checks an offer.
    ///
    /// # Errors
    /// [`SdpError`] says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, SdpError> {
        let lines = lines(bytes)?;
        if lines.first() != Some(&"v=0") {
            return Err(SdpError::Malformed("it begins with v=0"));
        }
        if lines.iter().filter(|l| l.starts_with("m=")).count() > MOST_SECTIONS {
            return Err(SdpError::Malformed("it has more than 32 media sections"));
        }
        let has = |attribute| lines.iter().any(|l| value(l, attribute).is_some());
        for needed in ["ice-ufrag", "ice-pwd", "fingerprint"] {
            if !has(needed) {
                return Err(SdpError::Missing(match needed {
                    "ice-ufrag" => "a=ice-ufrag",
                    "ice-pwd" => "a=ice-pwd",
                    _ => "a=fingerprint",
                }));
            }
        }
        if !sections(&lines).skip(1).any(sends_opus) {
            return Err(SdpError::NoAudio);
        }
        // The client finds us, never the other way round: it may sit behind any translator, and no offer can make this machine send to strangers.
        let kept = lines.iter().filter(|l| !is_candidate(l));
        let text = kept.fold(String::new(), |text, line| text + line + "\r\n");
        Ok(Self { text, is_passive: lines.contains(&"a=setup:passive") })
    }

    /// The offer without its candidates.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same offer with another name and password.
    #[must_use]
    pub fn restarted(&self, restart: &Restart) -> Self {
        let mut text = String::new();
        for line in self.text.lines() {
            let _ = match line.split_once(':').map(|(name, _)| name) {
                Some("a=ice-ufrag") => write!(text, "a=ice-ufrag:{}\r\n", restart.ufrag),
                Some("a=ice-pwd") => write!(text, "a=ice-pwd:{}\r\n", restart.password),
                _ => write!(text, "{line}\r\n"),
            };
        }
        Self { text, ..self.clone() }
    }
}

/// A fragment (RFC 8840, as WHIP clients PATCH it): a restart of ICE, or `None` for candidates alone, of which nothing is needed.
///
/// # Errors
/// Something else.
pub fn fragment(bytes: &[u8]) -> Result<Option<Restart>, SdpError> {
    let lines = lines(bytes)?;
    let first = |attribute| lines.iter().find_map(|l| value(l, attribute)).map(str::to_owned);
    match (first("ice-ufrag"), first("ice-pwd")) {
        (Some(ufrag), Some(password)) => Ok(Some(Restart { ufrag, password })),
        (None, None) if lines.iter().any(|l| is_candidate(l)) => Ok(None),
        _ => Err(SdpError::NoFragment),
    }
}

/// An address by which clients reach us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// An IP address.
    pub ip: String,
    /// And its port.
    pub port: u16,
    /// They connect to it, because their network lets no UDP through.
    pub is_tcp: bool,
}

impl Candidate {
    /// Its line as the `n`th of an answer, counted from 0; the first is the best. Source: RFC 8839, 5.1, and for TCP RFC 6544, 4.2 and 4.5.
    fn line(&self, n: usize) -> String {
        let Self { ip, port, is_tcp } = self;
        let (foundation, n) = (n + 1, n.min(8191));
        if *is_tcp {
            // Any UDP is better; of TCP, we are the one that is connected to.
            let priority = (90 << 24) + (((4 << 13) + 8191 - n) << 8) + 255;
            format!("a=candidate:{foundation} 1 tcp {priority} {ip} {port} typ host tcptype passive")
        } else {
            let priority = (126 << 24) + ((65_535 - n) << 8) + 255;
            format!("a=candidate:{foundation} 1 udp {priority} {ip} {port} typ host")
        }
    }
}

/// The answer as it goes out: our candidates, best first, sound in one direction, and how we should like it sent.
pub fn answer(text: &str, candidates: &[Candidate]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut are_told = false;
    for section in sections(&lines) {
        let is_live = section[0].split(' ').nth(1).is_some_and(|port| port != "0") && section[0].starts_with("m=");
        let opus = opus_type(section);
        for line in section.iter().filter(|l| !is_candidate(l)) {
            let is_opus_format =
                opus.is_some_and(|t| value(line, "fmtp").is_some_and(|v| v.split(' ').next() == Some(t)));
            match *line {
                "a=sendrecv" => out.push_str("a=recvonly\r\n"),
                "a=sendonly" => out.push_str("a=inactive\r\n"),
                _ if is_opus_format => {}
                _ => {
                    let _ = write!(out, "{line}\r\n");
                }
            }
        }
        if let Some(t) = opus {
            let _ = write!(out, "a=fmtp:{t} {WISHES}\r\n");
        }
        if is_live && !are_told {
            for (n, candidate) in candidates.iter().enumerate() {
                let _ = write!(out, "{}\r\n", candidate.line(n));
            }
            out.push_str("a=end-of-candidates\r\n");
            are_told = true;
        }
    }
    out
}

/// Copies of each packet in the next one, nothing sent in pauses, and no more than a model at 16 kHz hears (RFC 7587, 6.1).
const WISHES: &str = "minptime=10;useinbandfec=1;usedtx=1;stereo=0;maxplaybackrate=16000;maxaveragebitrate=32000";

/// The fragment that answers a restart: name, password and candidates.
pub fn restart_answer(answer: &str) -> String {
    let lines: Vec<&str> = answer.lines().collect();
    let mut out = String::from("a=ice-options:trickle\r\n");
    let live = sections(&lines).find(|s| s.iter().any(|l| is_candidate(l))).unwrap_or_default();
    for line in live.iter().filter(|l| l.starts_with("m=") || value(l, "mid").is_some()) {
        let _ = write!(out, "{line}\r\n");
    }
    let named = |l: &&&str| value(l, "ice-ufrag").is_some() || value(l, "ice-pwd").is_some() || is_candidate(l);
    for line in live.iter().filter(named) {
        let _ = write!(out, "{line}\r\n");
    }
    out
}

/// The name and password that an answer gives to its session.
pub fn credentials(answer: &str) -> Option<Restart> {
    let first = |attribute| answer.lines().find_map(|l| value(l, attribute)).map(str::to_owned);
    Some(Restart { ufrag: first("ice-ufrag")?, password: first("ice-pwd")? })
}

fn lines(bytes: &[u8]) -> Result<Vec<&str>, SdpError> {
    if bytes.len() > MOST_BYTES {
        return Err(SdpError::TooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| SdpError::Malformed("it is text in UTF-8"))?;
    let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty()).collect();
    let is_line = |l: &&str| l.as_bytes()[0].is_ascii_lowercase() && l.as_bytes().get(1) == Some(&b'=');
    if lines.iter().all(is_line) && !text.contains('\0') {
        Ok(lines)
    } else {
        Err(SdpError::Malformed("its lines are letter=value"))
    }
}

/// The session's part, then each media section with its `m=` line first.
fn sections<'a>(lines: &'a [&'a str]) -> impl Iterator<Item = &'a [&'a str]> {
    lines.chunk_by(|_, next| !next.starts_with("m="))
}

/// The value of `a=name:value`.
fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.strip_prefix("a=")?.strip_prefix(name)?.strip_prefix(':')
}

fn is_candidate(line: &str) -> bool {
    line == "a=end-of-candidates" || value(line, "candidate").is_some() || value(line, "remote-candidates").is_some()
}

/// The payload type of Opus in a section.
fn opus_type<'a>(section: &[&'a str]) -> Option<&'a str> {
    let maps = section.iter().filter_map(|l| value(l, "rtpmap")?.split_once(' '));
    maps.filter(|(_, codec)| codec.to_ascii_lowercase().starts_with("opus/48000")).map(|(t, _)| t).next()
}

fn sends_opus(section: &[&str]) -> bool {
    let is_audio = section.first().is_some_and(|m| m.starts_with("m=audio "));
    is_audio && opus_type(section).is_some() && !section.iter().any(|l| matches!(*l, "a=recvonly" | "a=inactive"))
}
