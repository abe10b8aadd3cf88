//! Booting a sandbox and running a program in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ember_core::{
    Assets, ByteSize, Command, Image, Kernel, Sandbox, SandboxBuilder, Template, TemplateBuilder,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::figure::Figure;

/// What all figures here hold for.
pub(crate) const CONDITIONS: &str = "tuned kernel, 1 vCPU, 128 MiB, python pack";

/// The sandbox that is measured.
pub(crate) fn builder() -> Result<SandboxBuilder> {
    let (kernel, image) = files()?;
    Ok(Sandbox::builder(image)
        .vcpus(1)
        .memory(ByteSize::mib(128))
        .kernel(kernel))
}

/// The template that is measured.
pub(crate) fn template(vcpus: u8) -> Result<TemplateBuilder> {
    let (kernel, image) = files()?;
    Ok(Template::builder(image)
        .vcpus(vcpus)
        .memory(ByteSize::mib(128))
        .kernel(kernel)
        .cached(false))
}

fn files() -> Result<(Kernel, Image)> {
    static FILES: OnceLock<(TempDir, PathBuf, PathBuf)> = OnceLock::new();
    let (_, kernel, image) = match FILES.get() {
        Some(files) => files,
        None => {
            let files = local_files()?;
            FILES.get_or_init(|| files)
        }
    };
    Ok((Kernel::file(kernel), Image::file(image)))
}

/// Kernel and image, copied to where temporary files are. The cache may be on a file system that
/// another machine serves; an instruction clock does not run, it jumps, while such a file system is
/// waited for.
fn local_files() -> Result<(TempDir, PathBuf, PathBuf)> {
    let assets = Assets::of_user()?;
    let directory = tempfile::tempdir()?;
    let copy = |from: &Path, name: &str| {
        let to = directory.path().join(name);
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        anyhow::Ok(to)
    };
    let kernel = copy(&assets.kernel(&Kernel::tuned())?.image, "vmlinux")?;
    let image = copy(&assets.image(&Image::pack("python"))?.file, "root.squashfs")?;
    Ok((directory, kernel, image))
}

/// Reads all of an image where it is, in the cache. That may be on a file system that another machine
/// serves: an instruction clock jumps while such a one is waited for, and it is not if all of the
/// image is in memory.
pub(crate) fn read_ahead(image: &Image) -> Result<()> {
    let mut file = fs::File::open(Assets::of_user()?.image(image)?.file)?;
    io::copy(&mut file, &mut io::sink())?;
    Ok(())
}

/// Milliseconds since `start`.
pub(crate) fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

const BOOTS: usize = 20;
const RUNS: usize = 100;
const WARM_UP: usize = 5;

/// `boot.agent`: from the call of `boot` until the agent has answered, everything included that is
/// not in the cache on disk.
pub(crate) fn boot(runtime: &Runtime) -> Result<Vec<Figure>> {
    let samples = runtime.block_on(async {
        // The first one pays for reading files that every later one finds in the page cache.
        builder()?.boot().await?.close().await;
        let mut samples = Vec::new();
        for _ in 0..BOOTS {
            let start = Instant::now();
            let sandbox = builder()?.boot().await?;
            samples.push(ms_since(start));
            sandbox.close().await;
        }
        anyhow::Ok(samples)
    })?;
    Ok(vec![Figure::of(
        "boot.agent",
        "reply",
        "ms",
        Some(150.0),
        CONDITIONS,
        &samples,
    )])
}

/// `exec.true`: `/bin/true`, from the request until its exit status is there, and how much of that
/// the guest took from starting the program to knowing its end.
pub(crate) fn exec(runtime: &Runtime) -> Result<Vec<Figure>> {
    let mut total = Vec::new();
    let mut guest = Vec::new();
    let mut rest = Vec::new();
    runtime.block_on(async {
        let sandbox = builder()?.boot().await?;
        for run in 0..WARM_UP + RUNS {
            let start = Instant::now();
            let output = sandbox.exec(Command::new("/bin/true")).await?;
            let all = ms_since(start);
            ensure!(output.success(), "/bin/true failed");
            if run >= WARM_UP {
                let inside = output.outcome.wall.as_secs_f64() * 1e3;
                total.push(all);
                guest.push(inside);
                rest.push(all - inside);
            }
        }
        sandbox.close().await;
        anyhow::Ok(())
    })?;
    let figure = |name, goal, what: &str, samples: &[f64]| {
        Figure::of(
            name,
            "result",
            "ms",
            goal,
            format!("{CONDITIONS}; {what}"),
            samples,
        )
    };
    Ok(vec![
        figure("exec.true", Some(3.0), "request to exit status", &total),
        figure(
            "exec.true.guest",
            None,
            "of that: fork, exec and wait in the guest",
            &guest,
        ),
        figure("exec.true.channel", None, "of that: everything else", &rest),
    ])
}
