//! /v1/calls: a stereo file becomes a call; calls are listed, shown, watched, exported, forgotten.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::App;
use super::auth::Access;
use super::visit::{BODY, Queried, Refused, Visit, upload};
use crate::apps::calls::live::{Hub, Opening, Post, Record, Told};
use crate::audio::file::{self, FileError};
use crate::config::Config;
use crate::engine::Tenant;
use crate::protocol::openai::{ErrorBody, Refusal};

/// Alerts that wait to be posted.
const ALERTS: usize = 64;
/// How long the receiver of an alert may take; how often it is tried, an hour in all, and how long is waited between.
const PATIENCE: Duration = Duration::from_secs(10);
const TRIES: u32 = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often calls are looked for that are past their time.
const TIDY: Duration = Duration::from_secs(600);

/// A form's fields beside the file: what the two channels are called.
struct Names([String; 2]);

impl Names {
    fn field(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        let slot = match name {
            "left" => &mut self.0[0],
            "right" => &mut self.0[1],
            _ => return Ok(()),
        };
        if value.is_empty() || value.chars().count() > 64 {
            return Err(ErrorBody::invalid("invalid_value", "A party's name has 1 to 64 characters.").at(name));
        }
        value.clone_into(slot);
        Ok(())
    }
}

/// A file of two channels: answered when it is known to be one; the rest of it is heard after that.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    request: Request,
) -> Result<Response, Refused> {
    let tenant = owner(&access)?;
    let visit = Visit::begin(app.clone())?;
    let mut names = Names(["customer".into(), "agent".into()]);
    let form = upload(request, |name, value| names.field(name, value));
    let bytes = timeout(BODY, form).await.map_err(|_| Refused::slow())??;
    let opening = Opening {
        id: format!("call_{}", visit.suffix),
        source: "file",
        tenant,
        names: names.0.into(),
        sessions: (0..3).map(|_| app.next_session().0).collect(),
        is_patient: true,
    };
    let (mut live, work) = app.hub.open(opening);
    let record = live.record().clone();
    let (begun, has_begun) = oneshot::channel();
    let limit = app.config.limits.file_seconds.min(app.config.calls.max_seconds);
    tokio::spawn(async move {
        work.await;
        drop(visit);
    });
    tokio::task::spawn_blocking(move || {
        let mut begun = Some(begun);
        let heard = file::stream_two(bytes, limit, &mut |left, right| {
            if let Some(begun) = begun.take() {
                drop(begun.send(Ok(())));
            }
            live.hear_patiently(0, left) && live.hear_patiently(1, right)
        });
        match (heard, begun) {
            (Err(error), Some(begun)) => drop(begun.send(Err(error))),
            (Err(error), None) => live.mark(&format!("the file ends here: {error}")),
            (Ok(_), _) => {}
        }
        live.hang_up_patiently();
    });
    let unheard = |error: FileError| {
        app.hub.discard(&record);
        Refused::from(ErrorBody::invalid("invalid_audio", error.to_string()).at("file"))
    };
    match has_begun.await {
        Ok(Ok(())) => {
            let location = [(header::LOCATION, format!("/v1/calls/{}", record.id()))];
            Ok((StatusCode::CREATED, location, Json(record.show())).into_response())
        }
        Ok(Err(error)) => Err(unheard(error)),
        Err(_) => Err(unheard(FileError::Empty)),
    }
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
) -> Result<Json<Value>, Refused> {
    let data: Vec<Value> = app.hub.list(owner(&access)?).iter().map(|record| record.show_short()).collect();
    Ok(Json(json!({"object": "list", "data": data, "settings": settings(&app.config)})))
}

/// What becomes of what is heard, for those who are to be told.
fn settings(config: &Config) -> Value {
    let calls = &config.calls;
    let alerts: Vec<&str> = calls.alerts.iter().map(|rule| rule.name.as_str()).collect();
    json!({
        "recording": calls.record,
        "kept": calls.kept, "hours": calls.hours, "redact": calls.redact, "notes": calls.notes,
        "journal": config.journal.enabled, "words": config.journal.words || !config.journal.enabled,
        "alerts": alerts, "webhook": !calls.webhook.is_empty(),
    })
}

/// Has calls forgotten when their time is over, until the server ends.
pub(super) async fn tidy(hub: Arc<Hub>, mut ending: watch::Receiver<bool>) {
    while timeout(TIDY, ending.wait_for(|ending| *ending)).await.is_err() {
        hub.tidy();
    }
}

/// Whose calls these are.
fn owner(access: &Access) -> Result<Tenant, Refused> {
    access.reader().ok_or_else(|| {
        let message = "A client secret opens sessions; calls are for those with a token.";
        Refused::new(StatusCode::FORBIDDEN, ErrorBody::invalid("client_secret_not_enough", message))
    })
}

pub(super) fn find(app: &App, access: &Access, id: &str) -> Result<Arc<Record>, Refused> {
    app.hub.find(owner(access)?, id).ok_or_else(|| {
        Refused::new(StatusCode::NOT_FOUND, ErrorBody::invalid("call_not_found", "There is no such call."))
    })
}

#[derive(Deserialize)]
pub(super) struct Params {
    format: Option<String>,
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    Queried(params): Queried<Params>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let record = find(&app, &access, &id)?;
    let accepts = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match params.format.as_deref() {
        Some("csv") => {}
        None if accepts.starts_with("text/csv") => {}
        None | Some("json") => return Ok(Json(record.show()).into_response()),
        Some(_) => return Err(ErrorBody::invalid("invalid_value", "A format is json or csv.").at("format").into()),
    }
    let name = format!("attachment; filename=\"{}.csv\"", record.id());
    let head = [(header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((head, record.report().to_csv()).into_response())
}

pub(super) async fn forget(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    find(&app, &access, &id)?;
    let forgotten = app.hub.forget(access.tenant, &id).await.map_err(|error| {
        tracing::error!(%error, "a call cannot be forgotten");
        let error = ErrorBody::server("journal_failed", "The call cannot be deleted now.");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    })?;
    if forgotten {
        return Ok(StatusCode::NO_CONTENT);
    }
    let error = ErrorBody::invalid("call_is_live", "A call that goes on cannot be forgotten.");
    Err(Refused::new(StatusCode::CONFLICT, error))
}

/// The whole call, and then what is new of it, until it is over.
pub(super) async fn watch(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    let record = find(&app, &access, &id)?;
    let (now, events) = record.watch();
    let first = Some(snapshot(&now, now["state"] == "ended"));
    let watching = Watching { is_over: false, record, events, first };
    Ok(Sse::new(stream::unfold(watching, Watching::next)).keep_alive(KeepAlive::default()).into_response())
}

fn snapshot(call: &Value, is_last: bool) -> Told {
    Told { text: json!({"type": "call.snapshot", "call": call}).to_string().into(), is_last }
}

struct Watching {
    record: Arc<Record>,
    events: broadcast::Receiver<Told>,
    first: Option<Told>,
    is_over: bool,
}

impl Watching {
    async fn next(mut self) -> Option<(Result<sse::Event, Infallible>, Self)> {
        let told = match self.first.take() {
            Some(first) => first,
            None if self.is_over => return None,
            None => match self.events.recv().await {
                Ok(event) => event,
                // Too far behind: the whole call again.
                Err(RecvError::Lagged(_)) => snapshot(&self.record.show(), false),
                Err(RecvError::Closed) => return None,
            },
        };
        self.is_over = told.is_last;
        Some((Ok(sse::Event::default().data(&*told.text)), self))
    }
}

/// Posts alerts to the configured address, one after the other, until the server ends; where they are to be put.
pub(super) fn webhook(config: &Config, mut ending: watch::Receiver<bool>) -> Option<mpsc::Sender<Post>> {
    let address = Some(config.calls.webhook.clone()).filter(|address| !address.is_empty())?;
    let (alerts, mut queue) = mpsc::channel::<Post>(ALERTS);
    tokio::spawn(async move {
        while let Some(alert) = queue.recv().await {
            let text: Arc<str> = alert.event.to_string().into();
            for attempt in 0..TRIES {
                let (address, text) = (address.clone(), text.clone());
                if tokio::task::spawn_blocking(move || post(&address, &text)).await.unwrap_or(true) {
                    alert.settle();
                    break;
                }
                let wait = LONGEST_WAIT.min(Duration::from_secs(1 << attempt.min(16)));
                if timeout(wait, ending.wait_for(|ending| *ending)).await.is_ok() {
                    return;
                }
            }
        }
    });
    Some(alerts)
}

/// Whether the receiver has said what it thinks of it.
fn post(address: &str, alert: &str) -> bool {
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build());
    match agent.post(address).header("Content-Type", "application/json").send(alert) {
        Ok(_) => true,
        // It will not take it the next time either.
        Err(ureq::Error::StatusCode(code @ 400..=499)) if code != 408 && code != 429 => {
            tracing::warn!(code, "an alert was refused");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "an alert could not be posted");
            false
        }
    }
}
