//! POST /v1/chat/completions. A client that vanishes drops its response, and with it the turn.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, FromRequest as _, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::time::timeout;

use super::App;
use super::auth::Access;
use super::visit::{Asked, BODY, Refused, Visit, streamed};
use crate::engine::Event;
use crate::protocol::chat::{Answer, Chat};
use crate::protocol::openai::ErrorBody;

pub(super) async fn complete(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    request: Request,
) -> Result<Response, Refused> {
    // Before the body: a server that is full does not take in what it cannot answer.
    let visit = Visit::begin(app)?;
    let body = timeout(BODY, Bytes::from_request(request, &())).await.map_err(|_| Refused::slow())?;
    let body = body?;
    let (config, session) = (visit.app.config.clone(), visit.session);
    let read = move || {
        let chat = Chat::parse(&body)?;
        drop(body);
        let (is_streamed, includes_usage, stops) = (chat.is_streamed(), chat.includes_usage(), chat.stops());
        let turn = chat.into_turn(session, access.tenant, &config)?;
        Ok::<_, Refused>((turn, is_streamed, includes_usage, stops))
    };
    let read = tokio::task::spawn_blocking(read).await.map_err(|panic| {
        tracing::error!(%panic, "reading a request ended by a panic, which is a bug");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorBody::server("server_error", "internal error"))
    })?;
    let (request, is_streamed, includes_usage, stops) = read?;
    let mut asked = visit.ask(request)?;
    let (app, suffix) = (&visit.app, &visit.suffix);
    let answer = Answer::new(suffix, app.now(), app.engine.model(), &app.config.http.reasoning_field, stops);
    if !is_streamed {
        return whole(asked, answer).await;
    }
    // What the engine refuses, it refuses first: then the status can still say so.
    let first = asked.next().await;
    if let Event::Failed(error) = first {
        return Err(error.into());
    }
    Ok(streamed(move |pieces| async move {
        // It keeps its place for as long.
        let _visit = visit;
        let mut chunks = Chunks { asked, answer, includes_usage, ready: VecDeque::new(), is_over: false };
        chunks.ready.push_back(chunks.answer.opening().to_string());
        chunks.take(&first);
        while let Some(chunk) = chunks.next().await {
            if !pieces.tell(chunk).await {
                return;
            }
        }
    }))
}

async fn whole(mut asked: Asked, mut answer: Answer) -> Result<Response, Refused> {
    loop {
        let event = asked.next().await;
        answer.event(&event);
        match event {
            Event::Done { finish, usage, .. } => return Ok(Json(answer.whole(finish, usage)).into_response()),
            Event::Failed(error) => return Err(error.into()),
            _ if answer.is_stopped() => asked.cancel(),
            _ => {}
        }
    }
}

/// A streamed answer.
struct Chunks {
    asked: Asked,
    answer: Answer,
    includes_usage: bool,
    ready: VecDeque<String>,
    is_over: bool,
}

impl Chunks {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk);
            }
            if self.is_over {
                return None;
            }
            let event = self.asked.next().await;
            self.take(&event);
        }
    }

    fn take(&mut self, event: &Event) {
        if let Some(delta) = self.answer.event(event) {
            self.ready.push_back(self.answer.chunk_of(&delta).to_string());
        }
        match event {
            Event::Done { finish, usage, .. } => {
                self.is_over = true;
                self.ready.push_back(self.answer.closing(*finish).to_string());
                if self.includes_usage {
                    self.ready.push_back(self.answer.usage_chunk(*usage).to_string());
                }
                self.ready.push_back("[DONE]".into());
            }
            Event::Failed(error) => {
                self.is_over = true;
                let refused = Refused::from(error.clone());
                self.ready.push_back(json!({"error": refused.error()}).to_string());
            }
            _ if self.answer.is_stopped() => self.asked.cancel(),
            _ => {}
        }
    }
}
