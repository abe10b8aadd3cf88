//! Work that waits, started from async code.

use crate::error::{Error, ErrorKind};

/// Does something that waits for the operating system on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            let message = format!("{what} ended unexpectedly");
            Err(Error::because(ErrorKind::Internal, message, error))
        }
    }
}
