//! Work that goes on beside what cargo does, which leaves processors idle again and again.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// This program, called for something else.
///
/// A process of its own, so that it gives way to all others (nice(1)), with what it starts. It ends
/// when this process does, or is not waited for.
#[derive(Debug)]
pub(crate) struct Background {
    what: &'static str,
    child: Child,
}

impl Background {
    /// Begins it: `arguments` are those of `cargo xtask`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        what: &'static str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--", "nice", "-n", "19"])
            .arg(std::env::current_exe().context("finding this executable")?)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting what makes {what}"))?;
        Ok(Self { what, child })
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("waiting for a child")?;
        if !status.success() {
            bail!("making {} failed ({status})", self.what);
        }
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // One that has been waited for is not there any more, and nothing happens.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
