//! Client secrets: short-lived keys (`ek_…`) that a server mints for a browser, each bound to the settings of the sessions it opens.
//!
//! `POST /v1/realtime/client_secrets`. The table is bounded, and so is what a key holds. A key opens what its minter may open, in the
//! same tenant, until it expires; it mints no further keys, or a leaked one would never end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use axum::{Json, extract::DefaultBodyLimit};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::App;
use super::auth::Access;
use super::visit::Refused;
use crate::protocol::openai::{ErrorBody, Refusal, SessionUpdate, Settings, parse_session};

/// How every one begins; clients look for it.
const PREFIX: &str = "ek_";
/// Keys that may live at once.
const MOST: usize = 1024;
/// What a request may hold, and so a key.
const MOST_BYTES: usize = 1 << 16;
/// A key's life in seconds, unless its minter says otherwise.
const LIFE: u64 = 600;

/// The keys that live, by the hash of each.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    keys: Mutex<HashMap<[u8; 32], Key>>,
}

#[derive(Debug)]
struct Key {
    until: Instant,
    access: Access,
}

impl Secrets {
    /// What this key opens, if it lives.
    pub(super) fn find(&self, hash: &[u8; 32]) -> Option<Access> {
        let keys = self.keys.lock().expect("no panic while it is held");
        keys.get(hash).filter(|key| key.until > Instant::now()).map(|key| key.access.clone())
    }

    /// A new key; `None` when too many live.
    fn mint(&self, life: Duration, access: Access) -> Option<String> {
        let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::rng().random::<[u8; 32]>()));
        let now = Instant::now();
        let mut keys = self.keys.lock().expect("no panic while it is held");
        if keys.len() >= MOST {
            keys.retain(|_, key| key.until > now);
        }
        if keys.len() >= MOST {
            return None;
        }
        keys.insert(Sha256::digest(&secret).into(), Key { until: now + life, access });
        Some(secret)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Wish {
    expires_after: Option<ExpiresAfter>,
    session: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct ExpiresAfter {
    seconds: Option<u64>,
}

impl Wish {
    fn read(body: &[u8]) -> Result<(Duration, SessionUpdate), Refusal> {
        let wish: Self = if body.is_empty() {
            Self::default()
        } else {
            serde_json::from_slice(body).map_err(|e| ErrorBody::invalid("invalid_json", e.to_string()))?
        };
        let seconds = wish.expires_after.and_then(|e| e.seconds).unwrap_or(LIFE);
        if !(10..=7200).contains(&seconds) {
            let message = "A client secret lives 10 to 7200 seconds.";
            return Err(ErrorBody::invalid("invalid_value", message).at("expires_after.seconds"));
        }
        let session = wish.session.map_or_else(|| Ok(SessionUpdate::default()), parse_session)?;
        Ok((Duration::from_secs(seconds), session))
    }
}

pub(super) fn route() -> MethodRouter<Arc<App>> {
    post(create).layer(DefaultBodyLimit::max(MOST_BYTES))
}

async fn create(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Refused> {
    if access.reader().is_none() {
        let message = "A client secret mints no client secrets; use the server's token.";
        return Err(Refused::new(StatusCode::FORBIDDEN, ErrorBody::invalid("client_secret_not_allowed", message)));
    }
    let (life, session) = Wish::read(&body?)?;
    let mut settings = Settings::new(&app.config);
    settings.apply(session.clone(), &app.config.voice);
    let bound = Access { session: Some(Arc::new(session)), ..access };
    let value = app.guard.secrets.mint(life, bound).ok_or_else(|| {
        let message = format!("{MOST} client secrets are live already. Try again later.");
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::server("overloaded", message))
    })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = format!("sess_{}", app.next_session().1);
    let session = settings.show(&name, app.engine.model());
    Ok(Json(json!({"value": value, "expires_at": (now + life).as_secs(), "session": session})))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_is_bounded_and_the_dead_make_room() {
        let secrets = Secrets::default();
        let dead = secrets.mint(Duration::ZERO, Access::default()).unwrap();
        assert!(secrets.find(&Sha256::digest(dead).into()).is_none(), "it has expired");
        let hour = Duration::from_secs(3600);
        for _ in 0..MOST {
            assert!(secrets.mint(hour, Access::default()).is_some());
        }
        assert!(secrets.mint(hour, Access::default()).is_none());
        assert_eq!(secrets.keys.lock().unwrap().len(), MOST);
    }

    #[test]
    fn a_wish_is_read_or_refused() {
        assert_eq!(Wish::read(b"").unwrap().0, Duration::from_secs(600));
        let wish =
            br#"{"expires_after": {"anchor": "created_at", "seconds": 20}, "session": {"type": "transcription"}}"#;
        assert_eq!(Wish::read(wish).unwrap().0, Duration::from_secs(20));
        for (bad, code) in [
            (&b"{"[..], "invalid_json"),
            (br#"{"expires_after": {"seconds": 9}}"#, "invalid_value"),
            (br#"{"session": {"type": "dream"}}"#, "invalid_value"),
            (br#"{"session": {"modalities": ["text"]}}"#, "unknown_parameter"),
        ] {
            assert_eq!(Wish::read(bad).unwrap_err().code, code);
        }
    }
}
