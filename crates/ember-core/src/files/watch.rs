//! What happens to files.

use ember_guest::protocol::{FileChange, FileEvent, FileRecords};

use super::malformed;
use super::request::Running;
use crate::error::{Error, ErrorKind};

/// Tells what happens to a file, or in a directory. Made by [`Files::watch`](crate::Files::watch);
/// dropped, it ends.
///
/// What is not asked for waits in the guest, some thousand events; of what is more than that, one
/// event tells that it was [lost](FileChange::Lost).
#[derive(Debug)]
pub struct FileWatch {
    running: Option<Running>,
    records: FileRecords,
}

impl FileWatch {
    pub(super) async fn begin(running: Running) -> Result<Self, Error> {
        let mut watch = Self {
            running: Some(running),
            records: FileRecords::default(),
        };
        match watch.event(false).await? {
            Some(event) if event.change == FileChange::Watching => Ok(watch),
            _ => {
                let message = "the guest's agent does not say that it watches";
                Err(Error::new(ErrorKind::GuestDied, message))
            }
        }
    }

    /// Waits for the next event. None, when what was watched is gone: its removal was told before.
    ///
    /// Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if the guest did not live to tell.
    pub async fn next(&mut self) -> Result<Option<FileEvent>, Error> {
        self.event(true).await
    }

    async fn event(&mut self, patient: bool) -> Result<Option<FileEvent>, Error> {
        loop {
            if let Some(event) = self.records.next_event().map_err(malformed)? {
                return Ok(Some(event));
            }
            let Some(running) = &mut self.running else {
                return Ok(None);
            };
            let mut buffer = [0; 4096];
            let count = match patient {
                true => running.read_when_there_is(&mut buffer).await?,
                false => running.read(&mut buffer).await?,
            };
            if count == 0 {
                if let Some(running) = self.running.take() {
                    running.finish().await?;
                }
                return Ok(None);
            }
            self.records.feed(buffer.get(..count).unwrap_or(&buffer));
        }
    }
}
