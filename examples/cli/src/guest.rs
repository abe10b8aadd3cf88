//! The guest of one invocation: cloned or booted, used, and always closed, also by Ctrl-C.

use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ember_core::{Assets, Code, Sandbox, SandboxBuilder, Template, TemplateBuilder};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::Common;
use crate::progress;
use crate::volume::VolumeAt;

/// Has a guest, does `work` in it, closes it, and says the exit status. A signal that asks this
/// process to end does so after the guest was closed.
///
/// The guest is a clone of the template that is kept of such guests, which is built if it is not
/// there.
pub(crate) async fn with_guest<F>(
    common: &Common,
    work: impl FnOnce(Sandbox) -> F,
) -> Result<ExitCode>
where
    F: Future<Output = (Sandbox, Result<ExitCode>)>,
{
    until_signal(async {
        let sandbox = if common.boot || common.console {
            guest(common)?.boot().await?
        } else {
            template(common)?.build().await?.fork().await?
        };
        let (sandbox, outcome) = work(sandbox).await;
        sandbox.close().await;
        outcome
    })
    .await
}

/// Does `work` unless a signal comes that asks this process to end. Then `work` is dropped, and with
/// it the guests that it has, which ends them.
pub(crate) async fn until_signal(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    tokio::select! {
        outcome = work => outcome,
        number = signals.any() => Ok(ExitCode::from(128 + number)),
    }
}

/// Describes a guest as `common` says.
pub(crate) fn guest(common: &Common) -> Result<SandboxBuilder> {
    let mut builder = Sandbox::builder(common.image())
        .assets(assets()?)
        .vcpus(common.vcpus);
    if let Some(memory) = common.memory {
        builder = builder.memory(memory);
    }
    if let Some(kernel) = &common.kernel {
        builder = builder.kernel(kernel.clone());
    }
    if let Some(placement) = common.placement {
        builder = builder.placement(placement);
    }
    if let Some(overlay) = common.overlay() {
        builder = builder.overlay(overlay);
    }
    for VolumeAt { place, volume } in &common.volume {
        builder = builder.volume(place, volume.clone());
    }
    if let Some(timeout) = common.timeout {
        builder = builder.timeout(timeout);
    }
    if common.console {
        builder = builder.console(|bytes| {
            // Standard error may be gone, and the guest goes on.
            let _ = io::stderr().write_all(bytes);
        });
    }
    Ok(builder)
}

/// Describes a template whose guests are as `common` says.
pub(crate) fn template(common: &Common) -> Result<TemplateBuilder> {
    if common.console {
        bail!(
            "--console shows the console of a guest that is booted: it is for run, exec and shell"
        );
    }
    let mut builder = Template::builder(common.image())
        .assets(assets()?)
        .vcpus(common.vcpus);
    if let Some(memory) = common.memory {
        builder = builder.memory(memory);
    }
    if let Some(kernel) = &common.kernel {
        builder = builder.kernel(kernel.clone());
    }
    if let Some(placement) = common.placement {
        builder = builder.placement(placement);
    }
    if let Some(overlay) = common.overlay() {
        builder = builder.overlay(overlay);
    }
    for VolumeAt { place, volume } in &common.volume {
        builder = builder.volume(place, volume.clone());
    }
    if let Some(timeout) = common.timeout {
        builder = builder.timeout(timeout);
    }
    if let Some(cap) = common.memory_cap {
        builder = builder.memory_cap(cap);
    }
    Ok(builder)
}

/// What this user has, with progress shown.
pub(crate) fn assets() -> Result<Assets> {
    Ok(Assets::of_user()?.with_progress(progress::to_stderr()))
}

/// What holds for a guest that is to run `code`: unless an image was named, it has the pack for the
/// program's language. Prepares the image, if it has to be, and refuses a language that it does not
/// have, before a guest is booted for it.
pub(crate) async fn for_code(common: &Common, code: &Code) -> Result<Common> {
    let assets = assets()?;
    let image = match common.named_image() {
        Some(image) => image,
        None => assets.image_for(code)?,
    };
    let named = image.clone();
    let ready = tokio::task::spawn_blocking(move || assets.image(&named)).await??;
    code.find_language(&ready.languages)?;
    Ok(Common {
        image: Some(image),
        pack_file: None,
        ..common.clone()
    })
}

/// The signals that ask a process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one and says its number.
    async fn any(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hang_up.recv() => 1,
        }
    }
}
