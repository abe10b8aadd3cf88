//! 200 MB into files and out of them, as files and as trees, without more memory on either side than
//! a buffer. A program of its own, so that its memory is nobody else's.
#![cfg(all(feature = "host", feature = "embed"))]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test"
)]

#[path = "agent/common.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use ember_guest::archive::{Caps, Links, Packer, unpack};
use ember_guest::host::{BlockingReader, BlockingWriter, Command};
use ember_guest::protocol::FileRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::{TestAgent, spawn, status_kib};

const BLOCK: usize = 100_000;
const BLOCKS: usize = 2_000;
/// What either side may grow by. One window and its copies are less than 1 MiB.
const KIB: u64 = 6 * 1024;

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn block(number: usize) -> Vec<u8> {
    let mut block = vec![number as u8; BLOCK];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

#[tokio::test]
async fn memory_is_bounded() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let directory = std::env::var_os("CARGO_TARGET_TMPDIR");
    let place = match directory {
        Some(directory) => tempfile::tempdir_in(directory).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let there = place.path().join("there");
    std::fs::create_dir(&there).unwrap();
    let file = there.join("file");
    let before = status_kib(std::process::id(), "VmHWM");
    let start = Instant::now();

    let request = FileRequest::Write {
        path: bytes(&file),
        append: false,
        mode: 0o644,
    };
    let mut process = spawn(&agent, Command::files(&request)).await;
    let its = process.pid();
    let mut stdin = process.take_stdin().unwrap();
    for number in 0..BLOCKS {
        stdin.write_all(&block(number)).await.unwrap();
    }
    let mut programs = vec![status_kib(its, "VmHWM")];
    drop(stdin);
    assert!(process.wait().await.unwrap().success());
    eprintln!("{:?}: 200 MB in", start.elapsed());

    let request = FileRequest::Read {
        path: bytes(&file),
        offset: 0,
        length: u64::MAX,
    };
    let mut process = spawn(&agent, Command::files(&request)).await;
    let mut stdout = process.take_stdout().unwrap();
    let mut buffer = vec![0; BLOCK];
    for number in 0..BLOCKS {
        stdout.read_exact(&mut buffer).await.unwrap();
        assert!(buffer == block(number), "block {number}");
        if number == BLOCKS / 2 {
            programs.push(status_kib(process.pid(), "VmHWM"));
        }
    }
    assert_eq!(stdout.read(&mut buffer).await.unwrap(), 0);
    assert!(process.wait().await.unwrap().success());
    eprintln!("{:?}: 200 MB out", start.elapsed());

    // Out as a tree, onto this side's disk.
    let here = place.path().join("here");
    std::fs::create_dir(&here).unwrap();
    let request = FileRequest::Pack {
        path: bytes(&there),
        bytes: 1 << 30,
        entries: 10,
        lenient: false,
        patterns: Vec::new(),
    };
    let mut process = spawn(&agent, Command::files(&request)).await;
    let input = BlockingReader::new(process.take_stdout().unwrap());
    let opened = File::open(&here).unwrap();
    let done = tokio::task::spawn_blocking(move || {
        unpack(opened.as_fd(), input, Caps::NONE, Links::Inside)
    });
    let done = done.await.unwrap().unwrap();
    assert_eq!((done.entries, done.bytes), (1, (BLOCK * BLOCKS) as u64));
    assert!(process.wait().await.unwrap().success());
    eprintln!("{:?}: out as a tree", start.elapsed());

    // And in again.
    let request = FileRequest::Unpack {
        path: bytes(&place.path().join("again")),
    };
    let mut process = spawn(&agent, Command::files(&request)).await;
    let output = BlockingWriter::new(process.take_stdin().unwrap());
    let opened = File::open(&here).unwrap();
    tokio::task::spawn_blocking(move || {
        let mut packer = Packer::new(output, Caps::NONE, false, |_: &[u8], _| Ok(()));
        packer.add_directory(opened.as_fd()).unwrap();
        drop(packer.finish().unwrap());
    })
    .await
    .unwrap();
    assert!(process.wait().await.unwrap().success());
    let again = File::open(place.path().join("again/file")).unwrap();
    assert_eq!(again.metadata().unwrap().len(), (BLOCK * BLOCKS) as u64);

    let grown = status_kib(std::process::id(), "VmHWM") - before;
    let agents = test.status_kib("VmHWM");
    eprintln!(
        "{:?}; host grew by {grown} KiB, agent's peak {agents} KiB, its programs' {programs:?}",
        start.elapsed()
    );
    assert!(grown < KIB, "the host's memory grew by {grown} KiB");
    assert!(agents < KIB, "the agent's memory grew to {agents} KiB");
    assert!(programs.iter().all(|it| *it < KIB), "{programs:?}");
}
