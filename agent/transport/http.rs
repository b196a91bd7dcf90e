//! The routes, and errors as JSON.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::{App, assets, auth, secrets, websocket};
use crate::protocol::openai::ErrorBody;

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/realtime", get(websocket::upgrade))
        .merge(secrets::routes())
        .fallback(page)
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

async fn models(State(app): State<Arc<App>>) -> impl IntoResponse {
    let model = json!({"id": app.engine.model(), "object": "model", "created": app.started, "owned_by": "hearken"});
    Json(json!({"object": "list", "data": [model]}))
}

async fn page(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if (method == Method::GET || method == Method::HEAD)
        && let Some(found) = assets::serve(uri.path(), &headers)
    {
        return found;
    }
    refuse(StatusCode::NOT_FOUND, &ErrorBody::invalid("not_found", "There is nothing here.")).into_response()
}
