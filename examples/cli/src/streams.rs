//! Connects a process in the guest with this process's standard streams.

use anyhow::Result;
use ember_core::{Outcome, Process, ProcessStdin};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Passes all three streams along until `process` ends.
pub(crate) async fn connect(mut process: Process) -> Result<Outcome> {
    let stdin = process.take_stdin();
    let stdout = process.take_stdout();
    let stderr = process.take_stderr();
    let outputs = async {
        tokio::join!(
            async {
                if let Some(stdout) = stdout {
                    copy(stdout, tokio::io::stdout()).await;
                }
            },
            async {
                if let Some(stderr) = stderr {
                    copy(stderr, tokio::io::stderr()).await;
                }
            },
        );
    };
    // Its own task: nobody need type the end of an input that the process does not wait for.
    let feeding = stdin.map(|stdin| tokio::spawn(feed(stdin)));
    let (outcome, ()) = tokio::join!(process.wait(), outputs);
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    Ok(outcome?)
}

/// Copies until one of the two ends. Either end's being gone is seen by the process as it would
/// see it of a pipe: dropping `from` makes its next write fail.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        // Flushed each time: whoever reads is to see it when it comes.
        let written = async {
            to.write_all(&buffer[..count]).await?;
            to.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}

/// Copies standard input to the process. Dropping the process's end is its end of file.
pub(crate) async fn feed(stdin: ProcessStdin) {
    copy(tokio::io::stdin(), stdin).await;
}
