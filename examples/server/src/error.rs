//! What a client is told that does not get what it asked for.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ember_core::{Error, ErrorKind};
use serde::Serialize;
use utoipa::ToSchema;

/// When a client is advised to come again: a sandbox is made in far less, and taken for longer.
const AGAIN: Duration = Duration::from_secs(1);
/// The same while templates are being built.
const AGAIN_WHEN_BUILT: Duration = Duration::from_secs(5);

/// The body of every answer that is no success.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What is wrong, for people.
    pub(crate) error: String,
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// The words that emberd has for it.
    pub(crate) fn no_such_sandbox() -> Self {
        Self::new(StatusCode::NOT_FOUND, "sandbox not found")
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(AGAIN),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    pub(crate) fn preparing(pack: &str) -> Self {
        Self {
            retry_after: Some(AGAIN_WHEN_BUILT),
            ..Self::unavailable(format!("the template of {pack} is still being built"))
        }
    }
}

impl From<Error> for ApiError {
    /// What a failure of the library is to a client. That a guest's own code fails is none.
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::InvalidRequest => Self::bad_request(message),
            ErrorKind::Unavailable => Self::unavailable(message),
            ErrorKind::Closed => Self::unavailable("the server is ending"),
            kind => {
                tracing::warn!(?kind, error = ?error, "a request failed");
                // The chain is for the log: it says more of this machine than of the request.
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(ErrorBody {
            error: self.message,
        });
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        if let Some(time) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(time.as_secs()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
