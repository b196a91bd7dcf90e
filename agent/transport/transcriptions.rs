//! POST /v1/audio/transcriptions: a file in utterances to their words, streamed or whole.
//!
//! The file is decoded on a thread of its own, which waits for the engine; a client that vanishes ends both.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::App;
use super::auth::Access;
use super::visit::{BODY, Pieces, Refused, Visit, streamed, upload};
use crate::apps::transcribe::{AHEAD, Utterance, Words, utterances};
use crate::audio::file::FileError;
use crate::engine::Tenant;
use crate::protocol::openai::ErrorBody;
use crate::protocol::transcription::{Said, Told, Wishes, delta, done, render};

pub(super) async fn transcribe(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    request: Request,
) -> Result<Response, Refused> {
    let visit = Visit::begin(app)?;
    let mut wishes = Wishes::default();
    let form = upload(request, |name, value| wishes.field(name, value));
    let file = timeout(BODY, form).await.map_err(|_| Refused::slow())??;
    let mut job = Job::begin(visit, access.tenant, file);
    // The first utterance before the answer's head: a file that cannot be heard has a status of its own.
    let first = job.next().await?;
    if !wishes.stream {
        let said = read(&mut job, first, None).await?;
        let content_type = [(header::CONTENT_TYPE, wishes.form.content_type())];
        return Ok((content_type, render(&said, job.seconds, &wishes)).into_response());
    }
    Ok(streamed(|pieces| async move {
        let last = match read(&mut job, first, Some(&pieces)).await {
            Ok(said) => done(&said, job.seconds),
            Err(refused) => json!({"error": refused.error()}),
        };
        pieces.tell(last.to_string()).await;
    }))
}

/// Reads all words, telling them as they come where somebody wants them so.
async fn read(job: &mut Job, first: Option<Utterance>, pieces: Option<&Pieces>) -> Result<Vec<Said>, Refused> {
    let (mut said, mut told) = (Vec::new(), Told::default());
    let mut next = first;
    while let Some(Utterance { start, end, sound }) = next {
        told.utterance();
        let mut text = String::new();
        let (app, session) = (job.visit.app.clone(), job.visit.session);
        let mut words = Words::begin(&*app.engine, session, job.tenant, &sound)?;
        while let Some(piece) = words.next().await? {
            text.push_str(&piece);
            if let (Some(pieces), Some(piece)) = (pieces, told.piece(&piece))
                && !pieces.tell(delta(&piece).to_string()).await
            {
                return Ok(said);
            }
        }
        said.push(Said { start, end, text });
        next = job.next().await?;
    }
    Ok(said)
}

/// A file on its way through the engine.
struct Job {
    visit: Visit,
    tenant: Tenant,
    utterances: mpsc::Receiver<Utterance>,
    decoder: Option<JoinHandle<Result<f64, FileError>>>,
    /// The file's length, known at its end.
    seconds: f64,
}

impl Job {
    fn begin(visit: Visit, tenant: Tenant, file: Vec<u8>) -> Self {
        let (out, utterances_in) = mpsc::channel(AHEAD);
        let config = visit.app.config.clone();
        let decode = move || utterances(file, &config.voice, config.limits.file_seconds, &out);
        let decoder = Some(tokio::task::spawn_blocking(decode));
        Self { visit, tenant, utterances: utterances_in, decoder, seconds: 0.0 }
    }

    /// The next utterance; `None` when all were given and the file was sound to its end.
    async fn next(&mut self) -> Result<Option<Utterance>, Refused> {
        if let Some(utterance) = self.utterances.recv().await {
            return Ok(Some(utterance));
        }
        if let Some(decoder) = self.decoder.take() {
            let decoded = decoder.await.map_err(|panic| {
                tracing::error!(%panic, "decoding a file ended by a panic, which is a bug");
                Refused::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorBody::server("server_error", "internal error"))
            })?;
            self.seconds = decoded.map_err(|e| ErrorBody::invalid("invalid_audio", e.to_string()).at("file"))?;
        }
        Ok(None)
    }
}
