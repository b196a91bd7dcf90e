//! Who may come in: one layer before every route.
//!
//! Two dangers, two checks. A stranger on the network needs a token. A page of another site, open in the user's own browser, needs none to reach a
//! server on loopback, so its `Origin` must be ours or listed; and where no token is asked for, the `Host` must be a loopback name, or a site whose name
//! is made to resolve to 127.0.0.1 (DNS rebinding) would count as ours.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::http::refuse;
use super::secrets::Secrets;
use super::{App, telephony};
use crate::config::Server;
use crate::engine::Tenant;
use crate::metrics::count;
use crate::protocol::openai::{ErrorBody, SessionUpdate};

/// How browsers pass a key, which cannot set headers on a WebSocket.
pub(super) const KEY_PROTOCOL: &str = "openai-insecure-api-key.";
/// The same in base64url, for tokens with signs that a subprotocol may not hold.
const CODED_KEY_PROTOCOL: &str = "hearken-key.";

/// What a request may do; the door leaves it with each request as an extension.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// Each token is a tenant of its own; without tokens there is one.
    pub(super) tenant: Tenant,
    /// What sessions begin with that are opened with a client secret.
    pub(super) session: Option<Arc<SessionUpdate>>,
}

impl Access {
    /// Whose conversations and calls may be read; nobody's with a client secret, which is in the hands of somebody who may know their own alone.
    pub(super) fn reader(&self) -> Option<Tenant> {
        self.session.is_none().then_some(self.tenant)
    }
}

/// The rules, made once.
pub(super) struct Guard {
    /// Hashes, so that comparing takes the same time for any wrong token.
    tokens: Vec<[u8; 32]>,
    origins: Vec<String>,
    loopback: bool,
    pub(super) secrets: Secrets,
}

/// Why a request is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Token,
    Origin,
    Host,
}

impl Guard {
    pub(super) fn new(server: &Server, address: SocketAddr) -> Self {
        Self {
            tokens: server.api_tokens.iter().map(|t| Sha256::digest(t.expose()).into()).collect(),
            origins: server.allowed_origins.iter().map(|o| o.trim_end_matches('/').to_ascii_lowercase()).collect(),
            loopback: address.ip().is_loopback(),
            secrets: Secrets::default(),
        }
    }

    /// From where: for every route.
    fn place(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let text = |name| headers.get(name).map(|v: &HeaderValue| v.to_str().unwrap_or("?").to_ascii_lowercase());
        let host = text(header::HOST);
        if self.loopback
            && let Some(host) = &host
            && !is_loopback(host)
            && !self.origins.iter().any(|o| authority(o) == Some(host))
        {
            return Err(Refused::Host);
        }
        let Some(origin) = text(header::ORIGIN) else { return Ok(()) };
        let same = host.is_some_and(|host| authority(&origin) == Some(&host));
        if same || self.origins.contains(&origin) { Ok(()) } else { Err(Refused::Origin) }
    }

    /// With what: for the API.
    fn token(&self, headers: &HeaderMap) -> Result<Access, Refused> {
        let text = |name| headers.get_all(name).into_iter().filter_map(|v: &HeaderValue| v.to_str().ok());
        let bearer = text(header::AUTHORIZATION)
            .filter_map(|v| v.split_once(' '))
            .filter_map(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()));
        let offered: Vec<&str> = text(header::SEC_WEBSOCKET_PROTOCOL).flat_map(|v| v.split(',')).collect();
        let keys = offered.iter().filter_map(|p| p.trim().strip_prefix(KEY_PROTOCOL));
        let coded =
            offered.iter().filter_map(|p| URL_SAFE_NO_PAD.decode(p.trim().strip_prefix(CODED_KEY_PROTOCOL)?).ok());
        let coded: Vec<String> = coded.filter_map(|key| String::from_utf8(key).ok()).collect();
        self.access(bearer.chain(keys).chain(coded.iter().map(String::as_str)))
    }

    /// What these tokens open.
    pub(super) fn access<'a>(&self, tokens: impl Iterator<Item = &'a str>) -> Result<Access, Refused> {
        let mut known = None;
        for token in tokens {
            let hash: [u8; 32] = Sha256::digest(token).into();
            if let Some(access) = self.secrets.find(&hash) {
                known = Some(access);
            } else if self.tokens.contains(&hash) {
                known = Some(Access { tenant: tenant(&hash), session: None });
            }
        }
        // Where no token is asked for, any will do: clients cannot go without one.
        known.or_else(|| self.tokens.is_empty().then(Access::default)).ok_or(Refused::Token)
    }
}

/// A tenant by its token's hash. Two tokens of one server do not meet in 64 bits by chance.
fn tenant(hash: &[u8; 32]) -> Tenant {
    let (first, _) = hash.split_first_chunk().expect("32 bytes are at least 8");
    Tenant(u64::from_le_bytes(*first))
}

/// `host[:port]` of an origin.
fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The layer. A page of a listed site is told so in the way browsers want to hear it (CORS), or they would keep the answer from it. What a browser asks
/// beforehand carries no token and is answered here.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let Some(origin) = headers.get(header::ORIGIN).filter(|_| app.guard.place(headers).is_ok()).cloned() else {
        return admit(app, request, next).await;
    };
    let asks = request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|_| asks).cloned();
    let mut response = if asks { StatusCode::NO_CONTENT.into_response() } else { admit(app, request, next).await };
    let told = response.headers_mut();
    told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    told.append(header::VARY, HeaderValue::from_static("origin"));
    told.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    if asks {
        told.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PATCH, DELETE"));
        wanted.map(|wanted| told.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted));
    }
    response
}

/// Of an answer's headers, those that a page of another site may read beside the usual ones.
const EXPOSED: &str = "location, link, etag, retry-after, content-range, content-disposition";

async fn admit(app: Arc<App>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    // A phone line brings its token in its first message.
    let api = request.uri().path().starts_with("/v1/") && request.uri().path() != telephony::PATH;
    let access = if api { app.guard.token(headers) } else { Ok(Access::default()) };
    let refused = match app.guard.place(headers).and(access) {
        Ok(access) => {
            request.extensions_mut().insert(access);
            return next.run(request).await;
        }
        Err(refused) => refused,
    };
    let (status, code, message) = match refused {
        Refused::Token => {
            count(&app.metrics.refused_auth);
            (StatusCode::UNAUTHORIZED, "invalid_api_key", "A token of this server is needed: Authorization: Bearer …")
        }
        Refused::Origin => {
            count(&app.metrics.refused_origin);
            (StatusCode::FORBIDDEN, "origin_not_allowed", "This page's site is not in server.allowed_origins.")
        }
        Refused::Host => {
            count(&app.metrics.refused_origin);
            let message =
                "This server is on loopback and answers to loopback names, or to those in server.allowed_origins.";
            (StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", message)
        }
    };
    let mut response = refuse(status, &ErrorBody::invalid(code, message)).into_response();
    if refused == Refused::Token {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Secret;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (header::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    fn guard(listen: &str) -> Guard {
        let server = Server {
            api_tokens: vec![Secret::new("right")],
            allowed_origins: vec!["https://ours.example/".into()],
            ..Server::default()
        };
        Guard::new(&server, listen.parse().unwrap())
    }

    #[test]
    fn a_rebound_name_and_a_foreign_page_are_turned_away_on_loopback() {
        let guard = guard("127.0.0.1:8080");
        for ok in [
            &[("host", "localhost:8080")][..],
            &[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")],
            &[("host", "[::1]:8080")],
            &[("host", "127.0.0.1:8080"), ("origin", "https://ours.example")],
            &[("host", "ours.example"), ("origin", "https://ours.example")],
            &[],
        ] {
            assert_eq!(guard.place(&headers(ok)), Ok(()), "{ok:?}");
        }
        let rebound = [("host", "evil.example:8080"), ("origin", "http://evil.example:8080")];
        assert_eq!(guard.place(&headers(&rebound)), Err(Refused::Host));
        let foreign = [("host", "127.0.0.1:8080"), ("origin", "https://evil.example")];
        assert_eq!(guard.place(&headers(&foreign)), Err(Refused::Origin));
        let other_port = [("host", "localhost:8080"), ("origin", "http://localhost:9999")];
        assert_eq!(guard.place(&headers(&other_port)), Err(Refused::Origin));
        assert_eq!(guard.place(&headers(&[("host", "localhost"), ("origin", "null")])), Err(Refused::Origin));
        assert_eq!(guard.place(&headers(&[("host", "127.0.0.1.evil.example")])), Err(Refused::Host));
    }

    #[test]
    fn beyond_loopback_any_name_will_do_but_origins_still_count() {
        let guard = guard("0.0.0.0:8080");
        assert_eq!(guard.place(&headers(&[("host", "box.lan:8080"), ("origin", "http://box.lan:8080")])), Ok(()));
        assert_eq!(guard.place(&headers(&[("host", "box.lan"), ("origin", "http://evil")])), Err(Refused::Origin));
    }

    #[test]
    fn a_token_comes_as_a_header_or_as_a_subprotocol() {
        let guard = guard("127.0.0.1:8080");
        let verdict = |pairs: &[(&'static str, &str)]| guard.token(&headers(pairs)).map(|access| access.tenant);
        let right = verdict(&[("authorization", "bearer right")]).unwrap();
        assert_ne!(right, Tenant::default(), "a token is a tenant of its own");
        let protocols = [("sec-websocket-protocol", "realtime, openai-insecure-api-key.right")];
        assert_eq!(verdict(&protocols), Ok(right));
        assert_eq!(verdict(&[("sec-websocket-protocol", "realtime, hearken-key.cmlnaHQ")]), Ok(right));
        assert_eq!(verdict(&[("sec-websocket-protocol", "realtime, hearken-key.d3Jvbmc")]), Err(Refused::Token));
        for wrong in ["Bearer wrong", "Bearer ", "right", "Basic right"] {
            assert_eq!(verdict(&[("authorization", wrong)]), Err(Refused::Token), "{wrong}");
        }
        assert_eq!(verdict(&[]), Err(Refused::Token));
    }
}
