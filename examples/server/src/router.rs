//! Which path is whose, and what every request goes through.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post};

use crate::api::{emberd, operators, zeroboot};
use crate::app::Shared;
use crate::error::ApiError;
use crate::keys;

/// The server, without its connections.
pub(crate) fn router(app: Shared) -> Router {
    let watched = middleware::from_fn_with_state(Shared::clone(&app), watch);
    // What tells nothing that is worth a key, and health checks cannot send one.
    let open = Router::new()
        .route("/healthz", get(operators::alive))
        .route("/readyz", get(operators::ready))
        .route("/openapi.json", get(operators::describe))
        .route("/v1/health", get(zeroboot::health))
        .route("/health", get(zeroboot::health));
    let guarded = Router::new()
        .route("/info", get(emberd::info))
        .route("/sandboxes", post(emberd::create))
        .route("/sandboxes/{id}", delete(emberd::delete))
        .route("/sandboxes/{id}/exec", post(emberd::execute))
        .route("/v1/exec", post(zeroboot::execute))
        .route("/exec", post(zeroboot::execute))
        .route("/v1/exec/batch", post(zeroboot::execute_batch))
        .route("/v1/metrics", get(zeroboot::metrics))
        .route("/metrics", get(operators::metrics))
        .route_layer(middleware::from_fn_with_state(
            Shared::clone(&app),
            keys::require,
        ));
    open.merge(guarded)
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path is not asked that way",
            )
        })
        .layer(watched)
        .with_state(app)
}

/// Counts and logs every request, those too whose client goes away before it is answered: then this
/// future is dropped.
/// How much of a path is worth a place in the log, which anybody can fill.
const LOGGED: usize = 200;

async fn watch(
    State(app): State<Shared>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    // Not the path itself: there would be a counter for each that anybody thinks of.
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    let route = format!("{} {route}", method(&request));
    let mut seen = Seen {
        path: request.uri().path().chars().take(LOGGED).collect(),
        route,
        app,
        begun: Instant::now(),
        status: None,
    };
    let response = next.run(request).await;
    seen.status = Some(response.status());
    response
}

fn method(request: &Request) -> &str {
    match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "PATCH" | "OPTIONS") => known,
        _ => "other",
    }
}

/// A request that is under way; dropped, it is over.
struct Seen {
    app: Shared,
    path: String,
    route: String,
    begun: Instant,
    status: Option<StatusCode>,
}

impl Drop for Seen {
    fn drop(&mut self) {
        let elapsed = self.begun.elapsed();
        let (path, ms) = (&self.path, (elapsed.as_secs_f64() * 1e6).round() / 1e3);
        let (route, status) = (std::mem::take(&mut self.route), self.status);
        // What the web servers of many call a client that has closed the connection.
        let number = status.map_or(499, |status| status.as_u16());
        match status {
            None => tracing::info!(route, path, ms, "the client has gone away"),
            // Asked every few seconds by machines.
            Some(StatusCode::OK) if route.starts_with("GET ") => {
                tracing::debug!(route, path, status = number, ms, "answered");
            }
            Some(_) => tracing::info!(route, path, status = number, ms, "answered"),
        }
        self.app.metrics.requested(route, number);
    }
}
