//! Connections, and the orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ember_core::{Condition, Host};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::app::{App, Shared};
use crate::keys::Keys;
use crate::options::Options;
use crate::packs::Packs;
use crate::router::router;

/// How long a client may take to send the head of a request, and may keep a connection that it asks
/// nothing on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may leave what it is sent lie, in milliseconds.
const UNREAD_TIMEOUT_MS: u32 = 30_000;
/// The largest head of a request, and the most of its headers.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Shared,
}

impl Server {
    /// Listens, if everything is as it has to be: the key, the packs, the address, this host.
    ///
    /// # Errors
    /// What is not, with what to do.
    pub async fn bind(options: &Options) -> Result<Self> {
        let keys = Keys::find(options.key_file.as_deref())?;
        keys.suffice_for(options.listen)?;
        if options.ready > options.max {
            let (ready, max) = (options.ready, options.max);
            bail!("{ready} sandboxes cannot be kept ready when {max} may be alive: see --max");
        }
        let packs = Packs::named(options)?;
        let address = options.listen;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| cannot_listen(address, error))?;
        let address = listener.local_addr().context("cannot listen")?;
        // It waits for the kernel at places.
        let host = tokio::task::spawn_blocking(Host::examine);
        can_boot(&host.await.context("cannot examine this host")?)?;
        let app = Arc::new(App::new(options.clone(), keys, packs));
        Ok(Self {
            listener,
            address,
            app,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is over, and ends in order: no connection is accepted any more, requests
    /// that are under way may come to their end for as long as the options say, then all sandboxes
    /// end. Gives the number of sandboxes that did not in time.
    ///
    /// # Errors
    /// When a template or a pool cannot be made.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<usize> {
        let Self {
            listener,
            address,
            app,
        } = self;
        let (packs, key) = (app.options.packs.join(","), !app.keys.is_empty());
        tracing::info!(%address, packs, key, "listening");
        let evicting = tokio::spawn({
            let app = Arc::clone(&app);
            async move { app.evict().await }
        });
        let mut preparing = tokio::spawn({
            let app = Arc::clone(&app);
            async move { app.packs.prepare(&app.options, &app.metrics).await }
        });
        let mut connections = Connections::new(&app);
        let failure = {
            let prepared = async {
                match (&mut preparing).await {
                    Ok(Ok(())) => std::future::pending().await,
                    Ok(Err(error)) => error,
                    Err(error) => anyhow!(error).context("preparing the pools"),
                }
            };
            tokio::select! {
                () = stop => None,
                error = prepared => Some(error),
                never = connections.serve(listener) => match never {},
            }
        };
        app.end();
        preparing.abort();
        let limit = app.options.drain_timeout;
        connections.end(limit).await;
        let held = app.sandboxes.take_all();
        let left = app.packs.drain(limit).await;
        evicting.abort();
        // Each is over before what it has is gone.
        let _ = (evicting.await, preparing_over(preparing).await);
        tracing::info!(held, left, "ended");
        match failure {
            Some(error) => Err(error),
            None => Ok(left),
        }
    }
}

/// A task that is polled no more once it was seen to be over.
async fn preparing_over(task: tokio::task::JoinHandle<Result<()>>) {
    if !task.is_finished() {
        let _ = task.await;
    }
}

/// What never is.
enum Never {}

/// The connections of clients.
struct Connections {
    app: Shared,
    places: Arc<Semaphore>,
    open: JoinSet<()>,
    graceful: GracefulShutdown,
}

impl Connections {
    fn new(app: &Shared) -> Self {
        Self {
            app: Arc::clone(app),
            places: Arc::new(Semaphore::new(app.options.max_connections)),
            open: JoinSet::new(),
            graceful: GracefulShutdown::new(),
        }
    }

    async fn serve(&mut self, listener: TcpListener) -> Never {
        let service = TowerToHyperService::new(router(Arc::clone(&self.app)));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS);
        loop {
            let (stream, place) = tokio::select! {
                accepted = accept(&listener, &self.places) => accepted,
                Some(over) = self.open.join_next() => {
                    if let Err(error) = over {
                        tracing::error!(%error, "a connection ended unexpectedly");
                    }
                    continue;
                }
            };
            let connection = http.serve_connection(TokioIo::new(stream), service.clone());
            let connection = self.graceful.watch(connection);
            self.open.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection has broken");
                }
                drop(place);
            });
        }
    }

    /// Has the connections end: those at once on which nothing is under way.
    async fn end(mut self, limit: Duration) {
        let graceful = self.graceful.shutdown();
        if tokio::time::timeout(limit, graceful).await.is_err() {
            tracing::warn!(
                connections = self.open.len(),
                "what is still under way is broken off"
            );
        }
        self.open.shutdown().await;
    }
}

/// The next connection, as soon as there is a place for one.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // It is closed nowhere.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match configure(&stream) {
                Ok(()) => return (stream, place),
                Err(error) => tracing::debug!(%error, "a connection has broken"),
            },
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Most likely there are no descriptors left: others have to end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Also ends a connection whose client takes no bytes any more: tcp(7), TCP_USER_TIMEOUT.
    rustix::net::sockopt::set_tcp_user_timeout(stream, UNREAD_TIMEOUT_MS)?;
    Ok(())
}

/// Errors of a connection that is already gone again: accept(2), "Error handling".
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "; another program does: --listen chooses another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 are root's",
        io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        _ => "",
    };
    anyhow!(error).context(format!("cannot listen on {address}{advice}"))
}

/// Refuses a host on which no guest runs.
fn can_boot(host: &Host) -> Result<()> {
    let flaw = host
        .findings
        .iter()
        .find(|finding| finding.condition == Condition::Bad);
    match flaw {
        None => Ok(()),
        Some(flaw) => {
            let advice = flaw.advice.as_deref().unwrap_or("`ember doctor` says more");
            bail!(
                "this host cannot run sandboxes: {}: {}; {advice}",
                flaw.subject,
                flaw.found
            )
        }
    }
}

#[cfg(test)]
mod tests;
