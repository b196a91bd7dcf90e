//! WebRTC: sound by Opus over RTP, events by a data channel or by server-sent events.
//!
//! ```text
//!  UDP port ── line ── peer connection ─┬ track   -> jitter buffer, Opus -> ears ┐
//!  (all sessions)                       └ channel -> events ------------> ears ──┴> session
//!                                         channel <─┬─ board <─────────────────────────┘
//!                        server-sent events         <─┘
//! ```
//! Two ways in lead to the same call: /v1/realtime/calls, as clients of the Realtime API have it, and /v1/whip, as studio software has it (RFC 9725).
//! Nothing is sent as sound, and our answers say so (`recvonly`). The client finds us, never the other way round: candidates in offers are not used,
//! ours stand in the answer, and nothing needs to be trickled.

mod board;
mod call;
mod flight;
mod http;
mod peer;
mod port;
mod tcp;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[doc(hidden)]
pub use http::form;
pub(super) use http::routes;
#[doc(hidden)]
pub use port::Datagrams;

use self::call::Call;
use self::port::Port;
use crate::config::Webrtc;
use crate::engine::Tenant;

/// The calls of a server, by their names.
pub(super) struct Calls {
    /// `None`: not served.
    port: Option<Port>,
    open: Mutex<HashMap<String, Arc<Call>>>,
}

impl Calls {
    /// Opens the port, if WebRTC is served.
    pub(super) fn open(config: &Webrtc, listen: SocketAddr) -> io::Result<Self> {
        let address = config.listen.unwrap_or(listen);
        let open = || {
            let unavailable = |error: io::Error, what: &str, advice: &str| {
                io::Error::new(error.kind(), format!("{what} cannot be had ({error}): set {advice}"))
            };
            let tcp = config.listen_tcp.map(|tcp| {
                let what = format!("TCP at {tcp}");
                std::net::TcpListener::bind(tcp).map_err(|e| unavailable(e, &what, "webrtc.listen_tcp to a free port"))
            });
            Port::open(address, tcp.transpose()?, &config.external_ip).map_err(|error| {
                let advice = "webrtc.listen to a free port, or webrtc.enabled = false";
                unavailable(error, &format!("UDP at {address}"), advice)
            })
        };
        let port = config.enabled.then(open).transpose()?;
        if let Some(port) = &port {
            tracing::info!(candidates = ?port.candidates(), "WebRTC");
        }
        Ok(Self { port, open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Call>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant's calls, the newest first.
    fn list(&self, tenant: Tenant) -> Vec<Arc<Call>> {
        let mut calls: Vec<_> = self.lock().values().filter(|call| call.tenant == tenant).cloned().collect();
        calls.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        calls
    }

    fn find(&self, id: &str) -> Option<Arc<Call>> {
        self.lock().get(id).cloned()
    }

    fn remember(&self, call: &Arc<Call>) {
        self.lock().insert(call.id.clone(), call.clone());
    }

    fn forget(&self, id: &str) {
        self.lock().remove(id);
    }
}
