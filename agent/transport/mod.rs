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
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::apps::calls::live::Hub;
use crate::config::{self, Config};
use crate::engine::{Engine, SessionId};
use crate::journal::{Journal, JournalError, place};
use crate::metrics::Metrics;

/// A request's head is here by then; so long may a connection be idle between two requests.
const HEAD: Duration = Duration::from_secs(30);

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
/// When the listener has no address, the journal cannot be opened, or the UDP port cannot be had.
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
            Hub::new(config.clone(), engine.clone(), calls::webhook(&config, ending.clone()), journal.clone())
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
    tokio::spawn(async move {
        shutdown.await;
        let _ = end.send(true);
    });
    tokio::spawn(calls::tidy(app.hub.clone(), ending.clone()));
    let patience = Duration::from_secs(config.server.drain_seconds);
    // Each connection holds an end of this channel for as long as it lives.
    let (alive, mut gone) = mpsc::channel::<()>(1);
    accept(listener, http::router(app), &ending, &alive).await;
    drop(alive);
    // An idle or slow connection does not hold the process.
    if tokio::time::timeout(patience, gone.recv()).await.is_err() {
        return Ok(());
    }
    // Sessions live on after their HTTP request; each gives its place back when it has said goodbye.
    let all = u32::try_from(config.server.max_sessions).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(patience, places.acquire_many(all)).await;
    Ok(())
}

/// Returns when the server is to end. An error of the watch means that nobody can tell us any more, which is an end as well.
async fn told(mut ending: watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}

/// Takes connections until the server is to end. What axum's own server does, and a limit to how long a request's head may take, without which anybody
/// holds connections for nothing.
async fn accept(mut listener: TcpListener, router: Router, ending: &watch::Receiver<bool>, alive: &mpsc::Sender<()>) {
    let end = told(ending.clone());
    let mut end = pin!(end);
    loop {
        let stream = tokio::select! {
            // Errors that pass are waited for in there.
            (stream, _) = axum::serve::Listener::accept(&mut listener) => stream,
            () = &mut end => return,
        };
        // A token of reply is a packet of its own; waiting to fill packets would only delay it.
        let _ = stream.set_nodelay(true);
        tokio::spawn(connection(stream, router.clone(), ending.clone(), alive.clone()));
    }
}

/// Serves one connection to its end. The request that it is at when the server is to end is still answered.
async fn connection(stream: TcpStream, router: Router, ending: watch::Receiver<bool>, _alive: mpsc::Sender<()>) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = told(ending) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
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
