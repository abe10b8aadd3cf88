//! A clone that has not run yet, and what makes a sandbox of it.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ember_guest::host::Agent;
use ember_vmm::devices::virtio::block::BlockConfig;
use ember_vmm::devices::virtio::vsock::VsockConfig;
use ember_vmm::{Backing, RestoreConfig, Vm};

use super::Inner;
use super::options::ForkOptions;
use crate::error::{Error, ErrorKind};
use crate::sandbox::Sandbox;
use crate::sandbox::builder::{AGENT_PORT, build_error, random};
use crate::sandbox::machine::{Line, Machine};

/// Far longer than a guest takes to answer that has nothing to do but that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A clone of a template that has not run yet, with everything in place that does not depend on
/// who it is to be. Nothing in it is anybody's.
pub struct Shell {
    vm: Vm,
    /// The host's end of the connection that the template's agent had.
    stream: UnixStream,
    template: Arc<Inner>,
    /// The guest will find in place what it touches first.
    is_warm: bool,
}

impl Shell {
    /// Makes one. Takes about a millisecond, most of it in the kernel.
    pub(super) fn new(template: Arc<Inner>) -> Result<Self, Error> {
        Self::backed(template, Backing::Mapped)
    }

    /// Makes one whose memory comes from somewhere else than usual.
    pub(super) fn backed(template: Arc<Inner>, backing: Backing) -> Result<Self, Error> {
        let fixture = &template.fixture;
        let host = |message: &'static str| {
            move |error| Error::because(ErrorKind::HostUnsupported, message, error)
        };
        let disk = fixture
            .disk
            .try_clone()
            .map_err(host("cannot use the image's file once more"))?;
        let mut config = RestoreConfig {
            disks: vec![BlockConfig::read_only(disk)],
            vsock: VsockConfig {
                carried_ports: vec![AGENT_PORT],
                ..VsockConfig::default()
            },
            backing,
            ..RestoreConfig::default()
        };
        if let Some(signal) = fixture.kick_signal {
            config.kick_signal = signal;
        }
        let vm = Vm::restore(&template.checkpoint, config).map_err(build_error)?;
        let stream = vm
            .vsock()
            .and_then(|vsock| vsock.take_carried(AGENT_PORT))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Internal,
                    "the template's agent had no connection",
                )
            })?;
        stream
            .set_nonblocking(true)
            .map_err(host("cannot use the guest's channel"))?;
        Ok(Self {
            vm,
            stream,
            template,
            is_warm: false,
        })
    }

    /// Brings in what the guest touches first, so that it need not wait for each page.
    #[must_use]
    pub(super) fn warm(mut self) -> Self {
        if !self.is_warm {
            if let Some(working_set) = &self.template.working_set {
                self.vm.prefetch(working_set);
            }
            self.is_warm = true;
        }
        self
    }

    /// Lets it run as who `options` say. When this returns, the clone has said that it is unique in
    /// all that it was given; until then nothing of the caller's can run in it.
    ///
    /// # Errors
    /// [`ErrorKind::ForkFailed`] when it does not answer, or could not be made unique;
    /// [`ErrorKind::InvalidRequest`] for options that cannot be. Either way there is no clone.
    pub async fn start(self, options: ForkOptions) -> Result<Sandbox, Error> {
        let Self {
            vm,
            stream,
            template,
            is_warm: _,
        } = self.warm();
        let identity = options.identity()?;
        let internal = |message: &'static str| {
            move |error| Error::because(ErrorKind::Internal, message, error)
        };
        if let Some(generation_id) = vm.generation_id() {
            generation_id
                .set(random()?)
                .map_err(internal("cannot set the generation id"))?;
        }
        let line = Line::default();
        let hang_up = stream
            .try_clone()
            .map_err(internal("cannot use the guest's channel"))?;
        line.set(hang_up);
        let machine = Machine::new(vm, line);
        let stream = tokio::net::UnixStream::from_std(stream)
            .map_err(internal("cannot use the guest's channel"))?;
        let agent = Agent::attach(stream, template.hello.clone());
        machine.start()?;
        let mut fixture = template.fixture.clone();
        if let Some(timeout) = options.timeout {
            fixture.settings.timeout = Some(timeout);
        }
        if let Some(limit) = options.output_limit {
            let limit = usize::try_from(limit.as_bytes()).unwrap_or(usize::MAX);
            fixture.settings.output_limit = limit;
        }
        let memory = Arc::clone(&template.memory);
        // From here on a failure is explained by what became of the guest, and ends it.
        let sandbox = Sandbox::new(machine, agent.clone(), fixture, Some(memory));
        match tokio::time::timeout(ANSWER_TIMEOUT, agent.identify(identity)).await {
            Ok(Ok(())) => Ok(sandbox),
            Ok(Err(error)) => Err(failed(sandbox.explain(error).await)),
            Err(_) => Err(Error::new(
                ErrorKind::ForkFailed,
                format!(
                    "the clone did not answer within {} s, and was ended",
                    ANSWER_TIMEOUT.as_secs()
                ),
            )),
        }
    }
}

/// A request that was wrong stays the caller's; all else means that there is no clone.
fn failed(error: Error) -> Error {
    if error.kind() == ErrorKind::InvalidRequest {
        return error;
    }
    let message = format!("the clone could not be made unique, and was ended: {error}");
    Error::because(ErrorKind::ForkFailed, message, error)
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell").finish_non_exhaustive()
    }
}
