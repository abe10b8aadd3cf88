//! From a description to a template.

use std::fmt;
use std::time::Duration;

use ember_guest::host::Command;
use ember_guest::protocol::FreezeOptions;

use super::{Template, capture};
use crate::assets::{Assets, Image, Kernel};
use crate::code::Code;
use crate::error::{Error, ErrorKind};
use crate::output::Output;
use crate::sandbox::{Sandbox, SandboxBuilder};
use crate::size::ByteSize;

/// What a template is to be.
pub struct TemplateBuilder {
    sandbox: SandboxBuilder,
    steps: Vec<Step>,
    shells: usize,
}

/// Something that is done in the guest before it is saved.
#[derive(Debug, Clone)]
enum Step {
    Run(Code),
    Exec(Command),
}

impl TemplateBuilder {
    pub(super) fn new(image: Image) -> Self {
        Self {
            sandbox: Sandbox::builder(image).for_template(),
            steps: Vec::new(),
            shells: 0,
        }
    }

    fn configure(mut self, with: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> Self {
        self.sandbox = with(self.sandbox);
        self
    }

    /// How many processors its guests have: 1 to 32, and 1 if not said.
    #[must_use]
    pub fn vcpus(self, count: u8) -> Self {
        self.configure(|sandbox| sandbox.vcpus(count))
    }

    /// How much memory they have: at least 64 MiB, and 256 MiB if not said.
    #[must_use]
    pub fn memory(self, size: ByteSize) -> Self {
        self.configure(|sandbox| sandbox.memory(size))
    }

    /// Their kernel: the tuned one if it has been built, else the stock one, if not said.
    #[must_use]
    pub fn kernel(self, kernel: Kernel) -> Self {
        self.configure(|sandbox| sandbox.kernel(kernel))
    }

    /// Where kernel, image and template are kept, and who is told when they have to be prepared.
    #[must_use]
    pub fn assets(self, assets: Assets) -> Self {
        self.configure(|sandbox| sandbox.assets(assets))
    }

    /// How long a command or program may take that does not say so itself. For ever, if not said.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.configure(|sandbox| sandbox.timeout(timeout))
    }

    /// How much of each output is kept where output is collected: 16 MiB if not said.
    #[must_use]
    pub fn output_limit(self, limit: ByteSize) -> Self {
        self.configure(|sandbox| sandbox.output_limit(limit))
    }

    /// The real-time signal that the VMs' threads use among themselves. See
    /// [`SandboxBuilder::kick_signal`].
    #[must_use]
    pub fn kick_signal(self, number: i32) -> Self {
        self.configure(|sandbox| sandbox.kick_signal(number))
    }

    /// Runs a program before the guest is saved, as often as it is said and in that order: what it
    /// reads is in the page cache of every clone, and what it writes is there.
    #[must_use]
    pub fn warm_up(mut self, code: Code) -> Self {
        self.steps.push(Step::Run(code));
        self
    }

    /// Runs a command before the guest is saved, as its administrator.
    #[must_use]
    pub fn prepare(mut self, command: Command) -> Self {
        self.steps.push(Step::Exec(command));
        self
    }

    /// How many shells are kept ready: clones that only wait to be told who they are. None if not
    /// said. Each costs about a thread for each processor, and no memory to speak of.
    #[must_use]
    pub fn shells(mut self, count: usize) -> Self {
        self.shells = count;
        self
    }

    /// Boots the guest, warms it up and saves it.
    ///
    /// # Errors
    /// As for [`SandboxBuilder::boot`]; [`ErrorKind::WarmUpFailed`] with what it wrote if a step
    /// does not succeed.
    pub async fn build(self) -> Result<Template, Error> {
        let sandbox = self.sandbox.boot().await?;
        for (index, step) in self.steps.into_iter().enumerate() {
            let output = match step {
                Step::Run(code) => sandbox.run(code).await,
                Step::Exec(command) => sandbox.exec(command).await,
            };
            succeeded(index, &output?)?;
        }
        let options = FreezeOptions {
            release_memory: true,
        };
        let inner = capture(&sandbox, options).await?;
        sandbox.close().await;
        Ok(Template::new(inner, self.shells))
    }
}

/// A template whose warm-up failed is not what its builder wanted.
fn succeeded(index: usize, output: &Output) -> Result<(), Error> {
    if output.success() {
        return Ok(());
    }
    let message = format!(
        "warm-up step {} ended with {}{}\n{}{}",
        index + 1,
        output.outcome.status,
        if output.outcome.timed_out {
            ", out of time"
        } else {
            ""
        },
        output.stdout.to_string_lossy(),
        output.stderr.to_string_lossy()
    );
    Err(Error::new(ErrorKind::WarmUpFailed, message.trim_end()))
}

impl fmt::Debug for TemplateBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemplateBuilder")
            .field("sandbox", &self.sandbox)
            .field("steps", &self.steps)
            .field("shells", &self.shells)
            .finish()
    }
}
