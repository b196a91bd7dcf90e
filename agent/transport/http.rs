//! The routes, and errors as JSON.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::json;

use super::{
    App, assets, auth, calls, chat, conversations, secrets, sound, telephony, transcriptions, webrtc, websocket,
};
use crate::protocol::openai::ErrorBody;

/// Describes every route to programs; tests hold the two together.
const OPENAPI: &str = include_str!("openapi.json");

/// All routes but the page's files. A path is written as in the OpenAPI document.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<App>>)> {
    let mut routes = vec![
        ("/health", get(|| async { Json(json!({"status": "ok"})) })),
        ("/ready", get(ready)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) })),
        ("/v1/models", get(models)),
        ("/v1/models/{model}", get(model)),
        ("/v1/chat/completions", post(chat::complete)),
        ("/v1/audio/transcriptions", post(transcriptions::transcribe)),
        ("/v1/calls", get(calls::list).post(calls::create)),
        ("/v1/calls/{call}", get(calls::show).delete(calls::forget)),
        ("/v1/calls/{call}/events", get(calls::watch)),
        ("/v1/calls/{call}/sound", get(sound::play)),
        ("/v1/realtime", get(websocket::upgrade)),
        ("/v1/realtime/client_secrets", secrets::route()),
        ("/v1/conversations", get(conversations::list)),
        ("/v1/conversations/{name}", get(conversations::read).delete(conversations::delete)),
        ("/v1/conversations/{name}/events", get(conversations::events)),
        ("/v1/captions/{name}", get(conversations::captions)),
        (telephony::PATH, get(telephony::upgrade)),
    ];
    routes.extend(webrtc::routes());
    routes
}

pub(super) fn router(app: Arc<App>) -> Router {
    let add = |router: Router<Arc<App>>, (path, methods)| router.route(path, methods);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(page)
        .method_not_allowed_fallback(|| async {
            let error = ErrorBody::invalid("method_not_allowed", "This method is not served here.");
            refuse(StatusCode::METHOD_NOT_ALLOWED, &error)
        })
        .layer(DefaultBodyLimit::max(app.config.http.max_body_bytes))
        .layer(from_fn_with_state(app.clone(), auth::check))
        .with_state(app)
}

/// An error with its HTTP status.
pub(super) fn refuse(status: StatusCode, error: &ErrorBody) -> (StatusCode, Json<serde_json::Value>) {
    (status, Json(json!({ "error": error })))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    if *app.ending.borrow() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, &ErrorBody::server("draining", "The server is ending."))
            .into_response();
    }
    let free = app.places.available_permits();
    Json(json!({"status": "ready", "model": app.engine.model(), "free_sessions": free})).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
}

fn the_model(app: &App) -> serde_json::Value {
    json!({"id": app.engine.model(), "object": "model", "created": app.started, "owned_by": "hearken"})
}

async fn models(State(app): State<Arc<App>>) -> impl IntoResponse {
    Json(json!({"object": "list", "data": [the_model(&app)]}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    if name == app.engine.model() {
        return Json(the_model(&app)).into_response();
    }
    let message = format!("The model served here is `{}`.", app.engine.model());
    refuse(StatusCode::NOT_FOUND, &ErrorBody::invalid("model_not_found", message).at("model")).into_response()
}

async fn page(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if (method == Method::GET || method == Method::HEAD)
        && let Some(found) = assets::serve(uri.path(), &headers)
    {
        return found;
    }
    refuse(StatusCode::NOT_FOUND, &ErrorBody::invalid("not_found", "There is nothing here.")).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_in_the_openapi_document_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(super::OPENAPI).unwrap();
        let described: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let served: BTreeSet<&str> = super::routes().into_iter().map(|(path, _)| path).collect();
        assert_eq!(described, served);
    }
}
