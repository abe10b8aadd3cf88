//! What the tests of sandboxes have in common.
#![allow(dead_code, reason = "not every test binary uses all of it")]

pub(crate) mod clones;
pub(crate) mod cycles;
pub(crate) mod load;
pub(crate) mod programs;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

use ember_core::{
    Assets, ByteSize, Image, Kernel, Sandbox, SandboxBuilder, Template, TemplateBuilder,
};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// A sandbox of the Python pack, as small as it is quick to boot.
pub(crate) fn builder() -> SandboxBuilder {
    Sandbox::builder(Image::pack("python")).memory(ByteSize::mib(192))
}

/// A template that few clones are made of. Whoever asks for the same, in whichever test, finds it in
/// the cache of this user. Without a language to warm up, "bash" is there in half the time of the
/// others.
pub(crate) fn template(pack: &str) -> TemplateBuilder {
    Template::builder(Image::pack(pack))
        .kernel(Kernel::tuned())
        .working_set(false)
}

/// Has the cache in `directory` use this user's kernels and images; templates are its own.
pub(crate) fn use_kernels_and_images(directory: &Path) {
    let user = Assets::of_user().unwrap();
    for kind in ["kernels", "images"] {
        symlink(user.directory().join(kind), directory.join(kind)).unwrap();
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Runs `test` with a sandbox that all tests of the binary share: each has to leave it as it found
/// it. It is never closed, but ends with the process.
pub(crate) fn shared<T>(test: impl AsyncFnOnce(&'static Sandbox) -> T) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(runtime);
    static SANDBOX: OnceLock<OnceCell<Sandbox>> = OnceLock::new();
    RUNTIME.block_on(async {
        let cell = SANDBOX.get_or_init(OnceCell::new);
        let sandbox = cell
            .get_or_init(async || builder().vcpus(2).boot().await.unwrap())
            .await;
        test(sandbox).await
    })
}

pub(crate) fn kernels() -> [(&'static str, Kernel); 2] {
    [("stock", Kernel::stock()), ("tuned", Kernel::tuned())]
}
