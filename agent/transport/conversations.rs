//! What was said, by HTTP: lists, searches, one conversation in several forms, and its deletion. And who comes back to one.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/conversations?search=&kind=&after=&limit=` | `{"object":"list","data":[…],"has_more":…}`, the newest first; `after` is the last `id` before it goes on |
//! | `GET /v1/conversations/{id}` | its turns, the number of its last event, and how to go on with it |
//! | `GET /v1/conversations/{id}.json`, `.txt`, `.vtt`, `.srt` | a file |
//! | `GET /v1/conversations/{id}/events?after=` | the events as its client was sent them |
//! | `DELETE /v1/conversations/{id}` | `{"deleted":true}`; a session that is live ends |
//! | `GET /v1/captions/{id}.vtt`, `.srt` | of what was spoken, as far as it has come |

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::App;
use super::auth::Access;
use super::http::refuse;
use super::listen::{Caller, Resume};
use super::visit::Queried;
use crate::engine::Tenant;
use crate::journal::{Form, Journal, JournalError, Search};
use crate::protocol::openai::ErrorBody;

/// Conversations in one answer.
const MOST: u32 = 100;

/// How a request for a session says whether its client can come back, and does.
#[derive(Deserialize)]
pub(super) struct Back {
    /// Empty: it wants to be able to. Else the token that it was given for that.
    resume: Option<String>,
    /// The name or number of the last event that it has.
    after: Option<String>,
    /// For the list of conversations.
    kind: Option<String>,
    /// `0`: nobody is to note how it sounds.
    notes: Option<String>,
}

impl Back {
    /// Whether nobody is to answer: only what is said is wanted.
    pub(super) fn is_captions(&self) -> bool {
        self.kind.as_deref() == Some("captions")
    }

    /// Whether captions are to be noted.
    pub(super) fn is_noted(&self) -> bool {
        self.is_captions() && self.notes.as_deref() != Some("0")
    }

    /// The caller, with what is said here of it.
    pub(super) async fn caller(self, app: &App, mut caller: Caller) -> Result<Caller, Refused> {
        if let Some(kind) = self.kind {
            if !matches!(kind.as_str(), "chat" | "captions" | "call") {
                return Err(Refused::Kind);
            }
            caller.kind = kind;
        }
        caller.resume = match self.resume {
            None => Resume::Never,
            // Without a journal its session has no `resume`, which tells it.
            Some(token) if token.is_empty() => Resume::New,
            Some(token) => {
                let journal = journal(app)?;
                let name = journal.name_in(&token).map(str::to_owned).ok_or(Refused::Unknown)?;
                if !journal.has(caller.tenant, &name).await? {
                    return Err(Refused::Unknown);
                }
                // `event_…_12` or `12`.
                let after = self.after.as_deref().and_then(|after| after.rsplit('_').next()?.parse().ok());
                Resume::Again(name, after.unwrap_or(0))
            }
        };
        Ok(caller)
    }
}

/// Why there is nothing to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("This server keeps no conversations (journal.enabled = false).")]
    Off,
    #[error("There is no such conversation.")]
    Unknown,
    #[error("A client secret opens sessions; conversations are read with a token.")]
    Secret,
    #[error("A kind is `chat`, `captions` or `call`.")]
    Kind,
    #[error("The journal cannot be read now.")]
    Failed(#[from] JournalError),
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, code) = match &self {
            Self::Off => (StatusCode::NOT_FOUND, "journal_off"),
            Self::Unknown => (StatusCode::NOT_FOUND, "conversation_not_found"),
            Self::Secret => (StatusCode::FORBIDDEN, "client_secret_not_enough"),
            Self::Kind => (StatusCode::BAD_REQUEST, "invalid_value"),
            Self::Failed(error) => {
                tracing::error!(%error, "the journal cannot be read");
                let error = ErrorBody::server("journal_failed", self.to_string());
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error).into_response();
            }
        };
        refuse(status, &ErrorBody::invalid(code, self.to_string())).into_response()
    }
}

fn journal(app: &App) -> Result<&Journal, Refused> {
    app.journal.as_ref().ok_or(Refused::Off)
}

/// Whose conversations may be read.
pub(super) fn reader(access: &Access) -> Result<Tenant, Refused> {
    access.reader().ok_or(Refused::Secret)
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    search: Option<String>,
    kind: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Queried(wanted): Queried<Wanted>,
) -> Result<Json<Value>, Refused> {
    let limit = wanted.limit.unwrap_or(20).clamp(1, MOST);
    let text = wanted.search.filter(|text| !text.is_empty());
    let search = Search { text, kind: wanted.kind, after: wanted.after, limit: limit + 1 };
    let mut found = journal(&app)?.list(reader(&access)?, search).await?;
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    Ok(Json(json!({"object": "list", "data": found, "has_more": has_more})))
}

pub(super) async fn read(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let journal = journal(&app)?;
    let (id, form) = split(&name)?;
    let story = journal.story(reader(&access)?, id).await?.ok_or(Refused::Unknown)?;
    if let Some(form) = form {
        return Ok(file(id, form, form.write(&story, false)));
    }
    let mut shown = serde_json::to_value(&story).expect("a story is plain maps with string keys");
    if journal.can_resume() {
        shown["resume"] = json!({"token": journal.token(id), "conversation_id": id});
    }
    Ok(Json(shown).into_response())
}

pub(super) async fn captions(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let (id, form) = split(&name)?;
    let form = form.filter(|form| matches!(form, Form::WebVtt | Form::SubRip)).ok_or(Refused::Unknown)?;
    let story = journal(&app)?.story(reader(&access)?, id).await?.ok_or(Refused::Unknown)?;
    Ok(file(id, form, form.write(&story, true)))
}

/// A conversation's name and the form in which it is wanted.
fn split(name: &str) -> Result<(&str, Option<Form>), Refused> {
    match name.split_once('.') {
        None => Ok((name, None)),
        Some((id, extension)) => Ok((id, Some(Form::of(extension).ok_or(Refused::Unknown)?))),
    }
}

fn file(id: &str, form: Form, text: String) -> Response {
    let extension = match form {
        Form::Json => "json",
        Form::Text => "txt",
        Form::WebVtt => "vtt",
        Form::SubRip => "srt",
    };
    // A name that SQLite knows is one of ours, and they are plain letters.
    let disposition = format!("inline; filename=\"{id}.{extension}\"");
    let headers = [
        (header::CONTENT_TYPE, form.content_type().to_owned()),
        (header::CONTENT_DISPOSITION, disposition),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (headers, text).into_response()
}

#[derive(Deserialize)]
pub(super) struct After {
    after: Option<u64>,
}

pub(super) async fn events(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    Queried(After { after }): Queried<After>,
) -> Result<Response, Refused> {
    let found = journal(&app)?.events(reader(&access)?, &name, after.unwrap_or(0)).await?;
    let frames: Vec<Box<RawValue>> =
        found.ok_or(Refused::Unknown)?.into_iter().filter_map(|(_, frame)| RawValue::from_string(frame).ok()).collect();
    let body = serde_json::to_string(&frames).expect("each is JSON already");
    let body = format!(r#"{{"object":"list","data":{body}}}"#);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refused> {
    let journal = journal(&app)?;
    if !journal.has(reader(&access)?, &name).await? {
        return Err(Refused::Unknown);
    }
    app.live.end(&name);
    journal.delete(reader(&access)?, &name).await?;
    Ok(Json(json!({"id": name, "object": "conversation.deleted", "deleted": true})))
}
