//! A guest whose monitor is at hand, and programs in it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use ember_core::{Assets, Command, Image, Kernel, Status, Stdin};
use ember_guest::host::{Agent, Process, ProcessOutput};
use ember_net::Tap;
use ember_vmm::devices::virtio::balloon::BalloonConfig;
use ember_vmm::devices::virtio::block::BlockConfig;
use ember_vmm::devices::virtio::network::NetworkConfig;
use ember_vmm::devices::virtio::vsock::{VsockConfig, VsockHandle};
use ember_vmm::kernel::KernelImage;
use ember_vmm::{Vm, VmConfig};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;

const AGENT_PORT: u32 = 1024;
/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x09, 0x02];
/// The size of the guest's disks beside its root.
pub(crate) const DISK_SIZE: u64 = 16 << 20;

/// A running guest.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) vm: Vm,
    pub(crate) agent: Agent,
    /// Its root file system.
    pub(crate) image: File,
    runtime: Runtime,
}

/// A Python program that runs in the guest while the host does something. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    process: Process,
    stdout: ProcessOutput,
    runtime: &'a Runtime,
}

/// A guest that has one of everything, and the host's ends of its devices.
#[derive(Debug)]
pub(crate) struct Equipped {
    pub(crate) machine: Machine,
    pub(crate) host_address: Ipv4Addr,
    pub(crate) guest_address: Ipv4Addr,
    /// What `/dev/vdb` is, which the guest may write.
    pub(crate) disk: File,
    /// What `/dev/vdc` is, which it may not.
    pub(crate) read_only_disk: File,
}

impl Machine {
    /// Boots the tuned kernel with what `configure` adds to a small guest.
    pub(crate) fn boot(configure: impl FnOnce(&mut VmConfig)) -> Self {
        Self::boot_kernel(&Kernel::tuned(), configure)
    }

    /// Boots `kernel` with what `configure` adds to a small guest.
    pub(crate) fn boot_kernel(kernel: &Kernel, configure: impl FnOnce(&mut VmConfig)) -> Self {
        let assets = Assets::of_user().unwrap();
        let kernel = assets.kernel(kernel).unwrap();
        let image = assets.image(&Image::pack("python")).unwrap();

        let mut config = VmConfig::new(KernelImage::from_path(&kernel.image).unwrap());
        config.memory_bytes = 192 << 20;
        config.initramfs = assets.initramfs(&kernel).unwrap();
        config.command_line = format!(
            "console=ttyS0 panic=-1 quiet ember.root=/dev/vda ember.rootfstype={} \
             ember.port={AGENT_PORT} ember.hostname=ember",
            image.file_system.unwrap()
        );
        config.disks = vec![BlockConfig::read_only(File::open(&image.file).unwrap())];
        config.vsock = Some(VsockConfig::default());
        configure(&mut config);

        let vm = Vm::new(config).unwrap();
        let (sender, calls) = mpsc::channel();
        let accept = Box::new(move |stream| drop(sender.send(stream)));
        vm.vsock().unwrap().listen(AGENT_PORT, accept).unwrap();
        vm.start().unwrap();
        // A guest of 32 processors takes long in a lab of two busy ones.
        let stream = calls.recv_timeout(3 * PATIENCE).unwrap_or_else(|_| {
            let console = vm.console().tail();
            panic!(
                "no agent; exit {:?}; console:\n{}",
                vm.exit(),
                String::from_utf8_lossy(&console)
            )
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let agent = runtime.block_on(async {
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            Agent::connect(stream).await.unwrap()
        });
        Self {
            vm,
            agent,
            image: File::open(&image.file).unwrap(),
            runtime,
        }
    }

    pub(crate) fn vsock(&self) -> VsockHandle {
        self.vm.vsock().unwrap()
    }

    /// Runs a Python program as root, which has to succeed; what it printed, without the last
    /// newline.
    pub(crate) fn python(&self, program: &str) -> String {
        let output = self.runtime.block_on(async {
            let process = self.agent.spawn(python(program)).await.unwrap();
            process.output(1 << 20).await.unwrap()
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        assert_eq!(
            output.outcome.status,
            Status::Exited(0),
            "{}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Starts a Python program as root, and returns with the first line that it prints.
    pub(crate) fn start_python(&self, program: &str) -> (Running<'_>, String) {
        let command = python(program).stdin(Stdin::Piped);
        let mut process = self.runtime.block_on(self.agent.spawn(command)).unwrap();
        let stdout = process.take_stdout().unwrap();
        let mut running = Running {
            process,
            stdout,
            runtime: &self.runtime,
        };
        let line = running.line();
        (running, line)
    }

    /// Asks the guest for a sign of life.
    pub(crate) fn ping(&self) {
        self.runtime.block_on(self.agent.ping()).unwrap();
    }
}

impl Running<'_> {
    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.runtime.block_on(async {
            while !line.ends_with(b"\n") {
                let Ok(byte) = self.stdout.read_u8().await else {
                    let mut errors = String::new();
                    let mut stderr = self.process.take_stderr().unwrap();
                    stderr.read_to_string(&mut errors).await.unwrap();
                    panic!("the program ended: {errors}");
                };
                line.push(byte);
            }
        });
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// Ends its standard input, which is for it the sign to go on.
    pub(crate) fn go_on(&mut self) {
        drop(self.process.take_stdin());
    }
}

fn python(program: &str) -> Command {
    Command::new("python3")
        .arg("-c")
        .arg(program)
        .timeout(2 * PATIENCE)
}

impl Equipped {
    /// Boots it. Of those that are alive at once, each has another `number`.
    pub(crate) fn boot(kernel: &Kernel, vcpus: u8, number: u8) -> Self {
        // Files without a name: a static is never dropped.
        let [disk, read_only_disk] = [0; 2].map(|_| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(DISK_SIZE).unwrap();
            file
        });
        let [host_address, guest_address] = [1, 2].map(|end| Ipv4Addr::new(198, 18, number, end));
        let tap = Tap::create(None).unwrap();
        tap.set_address(host_address, 30).unwrap();
        tap.bring_up().unwrap();
        let machine = Machine::boot_kernel(kernel, |config| {
            config.vcpus = vcpus;
            config.memory_bytes = 256 << 20;
            let mut writable = BlockConfig::read_write(disk.try_clone().unwrap());
            writable.serial = "writable".to_owned();
            config.disks.push(writable);
            let read_only = BlockConfig::read_only(read_only_disk.try_clone().unwrap());
            config.disks.push(read_only);
            config.networks.push(NetworkConfig {
                tap: tap.into_fd(),
                mac: GUEST_MAC,
            });
            config.balloon = Some(BalloonConfig::default());
            config.generation_id = Some([1; 16]);
        });
        Self {
            machine,
            host_address,
            guest_address,
            disk,
            read_only_disk,
        }
    }
}

/// The equipped guest that most tests share.
pub(crate) fn shared() -> &'static Equipped {
    static SHARED: LazyLock<Equipped> = LazyLock::new(|| Equipped::boot(&Kernel::tuned(), 2, 9));
    &SHARED
}

/// Bytes that look random, and are the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits until `done` is true of what `look` sees.
pub(crate) fn wait_for<T: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    done: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if done(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: still {seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
