//! What clients send: JSON, of bounded size, in bounded time.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::app::Shared;
use crate::error::ApiError;

/// How long a client may take to send a body. On a loopback interface or in a data centre it takes
/// milliseconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A request's body, as JSON whatever it says that it is: curl says it is a form, and emberd takes
/// that.
#[derive(Debug)]
pub(crate) struct Sent<T>(pub(crate) T);

/// The same where none need be. An empty one is the default.
#[derive(Debug)]
pub(crate) struct MaybeSent<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Shared> for Sent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, ApiError> {
        parse(&read(request, app).await?).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<Shared> for MaybeSent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, ApiError> {
        let bytes = read(request, app).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&bytes).map(Self)
    }
}

async fn read(request: Request, app: &Shared) -> Result<Bytes, ApiError> {
    let limit = app.options.body_limit;
    let bytes = usize::try_from(limit.as_bytes()).unwrap_or(usize::MAX);
    let too_large = || {
        let message = format!("the body is larger than {limit}");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    // Said beforehand, it need not be read.
    let said = request.headers().get(header::CONTENT_LENGTH);
    let said = said.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|length| length > bytes) {
        return Err(too_large());
    }
    let body = axum::body::to_bytes(request.into_body(), bytes);
    match timeout(TIMEOUT, body).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // Too large, or it broke off, after which nobody reads the answer.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let message = format!("the body did not come within {} s", TIMEOUT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("invalid request body: {error}")))
}
