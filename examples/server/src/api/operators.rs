//! For who runs the server.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::Document;
use crate::app::Shared;
use crate::error::{ApiError, ErrorBody};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    status: &'static str,
}

#[utoipa::path(get, path = "/healthz", tag = "operators",
    summary = "Whether the server answers",
    responses((status = 200, body = Status)))]
pub(crate) async fn alive() -> Json<Status> {
    Json(Status { status: "ok" })
}

#[utoipa::path(get, path = "/readyz", tag = "operators",
    summary = "Whether all pools have sandboxes to give",
    responses((status = 200, body = Status), (status = 503, body = ErrorBody)))]
pub(crate) async fn ready(State(app): State<Shared>) -> Result<Json<Status>, ApiError> {
    if app.is_ending() {
        return Err(ApiError::unavailable("the server is ending"));
    }
    match app.packs.iter().find(|pack| pack.ready().is_none()) {
        Some(pack) => Err(ApiError::preparing(&pack.name)),
        None => Ok(Json(Status { status: "ok" })),
    }
}

#[utoipa::path(get, path = "/metrics", tag = "operators", security(("key" = [])),
    summary = "Metrics, in Prometheus' text format",
    responses((status = 200, body = String), (status = 401, body = ErrorBody)))]
pub(crate) async fn metrics(State(app): State<Shared>) -> impl IntoResponse {
    let text = app.metrics.render(&app);
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (StatusCode::OK, kind, text)
}

#[utoipa::path(get, path = "/openapi.json", tag = "operators",
    summary = "This document",
    responses((status = 200)))]
pub(crate) async fn describe() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
