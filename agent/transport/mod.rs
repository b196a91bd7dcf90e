//! Wires: they carry bytes and events between clients and sessions, and know no model.

mod assets;
mod auth;
mod calls;
mod chat;
mod conversations;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod line;
mod listen;
mod live;
mod secrets;
mod sound;
mod task;
mod telephony;
mod transcriptions;
mod visit;
mod webrtc;
mod websocket;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::apps::calls::live::Hub;
use crate::config::{self, Config};
use crate::engine::{Engine, SessionId};
use crate::journal::{Journal, JournalError, place};
use crate::metrics::Metrics;

/// What every connection of one server shares.
pub(crate) struct App {
    config: Arc<Config>,
    engine: Arc<dyn Engine>,
    metrics: Arc<Metrics>,
    journal: Option<Journal>,
    live: Arc<live::Live<line::Line>>,
    /// The calls of phone lines and files.
    hub: Arc<Hub>,
    guard: auth::Guard,
    /// One permit a session.
    places: Arc<Semaphore>,
    calls: webrtc::Calls,
    sessions: AtomicU64,
    /// Seconds since 1970.
    started: u64,
    /// Milliseconds since 1970; makes the names of sessions unique across restarts.
    started_ms: u128,
    /// Turns true when the server is to end.
    ending: watch::Receiver<bool>,
}

impl App {
    /// Seconds since 1970.
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn next_session(&self) -> (SessionId, String) {
        let n = self.sessions.fetch_add(1, Ordering::Relaxed);
        (SessionId(n), format!("{:x}x{n:x}", self.started_ms))
    }
}

/// Serves until `shutdown` is ready, then lets sessions say goodbye (close 1001) for at most `server.drain_seconds`.
///
/// # Errors
/// When the listener has no address, the journal cannot be opened, the UDP port cannot be had, or accepting fails for good.
pub async fn serve(
    listener: TcpListener,
    config: Arc<Config>,
    engine: Arc<dyn Engine>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    let (end, ending) = watch::channel(false);
    let places = Arc::new(Semaphore::new(config.server.max_sessions));
    let metrics = Arc::new(Metrics::default());
    let journal = open_journal(&config.journal, &metrics).map_err(io::Error::other)?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let app = Arc::new(App {
        guard: auth::Guard::new(&config.server, address),
        metrics,
        live: live::Live::new(config.server.max_sessions),
        hub: Arc::new(
            Hub::new(config.clone(), engine.clone(), calls::webhook(&config), journal.clone())
                .map_err(io::Error::other)?,
        ),
        journal,
        places: places.clone(),
        calls: webrtc::Calls::open(&config.webrtc, address)?,
        sessions: AtomicU64::new(1),
        started: started.as_secs(),
        started_ms: started.as_millis(),
        ending: ending.clone(),
        engine,
        config: config.clone(),
    });
    tracing::info!(%address, model = app.engine.model(), "listening");
    // A token of reply is a packet of its own; waiting to fill packets would only delay it.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    tokio::spawn(async move {
        shutdown.await;
        let _ = end.send(true);
    });
    tokio::spawn(calls::tidy(app.hub.clone(), ending.clone()));
    let told = |mut ending: watch::Receiver<bool>| async move {
        // An error means that nobody can tell us any more, which is an end as well.
        let _ = ending.wait_for(|ending| *ending).await;
    };
    let patience = Duration::from_secs(config.server.drain_seconds);
    let server = axum::serve(listener, http::router(app)).with_graceful_shutdown(told(ending.clone()));
    tokio::select! {
        served = server => served?,
        // An idle or slow connection does not hold the process.
        () = async { told(ending).await; tokio::time::sleep(patience).await } => return Ok(()),
    }
    // Sessions live on after their HTTP request; each gives its place back when it has said goodbye.
    let all = u32::try_from(config.server.max_sessions).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(patience, places.acquire_many(all)).await;
    Ok(())
}

fn open_journal(config: &config::Journal, metrics: &Arc<Metrics>) -> Result<Option<Journal>, JournalError> {
    if !config.enabled {
        return Ok(None);
    }
    let path = place(config)?;
    let journal = Journal::open(&path, config, metrics.clone())?;
    tracing::info!(path = %path.display(), days = config.retention_days, "conversations are kept; journal.enabled = false keeps none");
    Ok(Some(journal))
}
