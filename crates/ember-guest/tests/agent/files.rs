//! The agent's own program for files, over the whole channel.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use ember_guest::host::{Agent, Command, Output, ProcessOutput, Stdin};
use ember_guest::protocol::{
    FEATURE_FILES, FileChange, FileKind, FileNote, FileRecords, FileRequest, Status, exit_code,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{TestAgent, output, spawn};

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

async fn does(agent: &Agent, request: FileRequest) -> Output {
    output(agent, Command::files(&request)).await
}

async fn write(agent: &Agent, path: &Path, append: bool, contents: &[u8]) -> Status {
    let request = FileRequest::Write {
        path: bytes(path),
        append,
        mode: 0o644,
    };
    let mut process = spawn(agent, Command::files(&request)).await;
    let mut stdin = process.take_stdin().unwrap();
    let _ = stdin.write_all(contents).await;
    drop(stdin);
    process.wait().await.unwrap().status
}

/// That the request failed for this reason, and says something.
fn assert_failed(output: &Output, code: i32) {
    assert_eq!(
        output.outcome.status,
        Status::Exited(code as u8),
        "{output:?}"
    );
    let notes: Vec<_> = FileNote::decode_all(&output.stderr).collect();
    assert!(
        matches!(&notes[..], [FileNote::Failed(text)] if !text.is_empty()),
        "{notes:?}"
    );
}

#[tokio::test]
async fn files_are_read_and_written() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        assert!(agent.hello().features & FEATURE_FILES != 0);
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        let read = |path: &Path, offset, length| FileRequest::Read {
            path: bytes(path),
            offset,
            length,
        };
        let contents: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(
            write(&agent, &file, false, &contents).await,
            Status::Exited(0)
        );
        assert!(fs::read(&file).unwrap() == contents);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let out = does(&agent, read(&file, 0, u64::MAX)).await;
        assert!(out.outcome.success() && out.stdout == contents);
        let out = does(&agent, read(&file, 1000, 5)).await;
        assert_eq!(out.stdout, contents[1000..1005]);

        assert_eq!(
            write(&agent, &file, false, b"short").await,
            Status::Exited(0)
        );
        assert_eq!(write(&agent, &file, true, b"er").await, Status::Exited(0));
        assert_eq!(fs::read(&file).unwrap(), b"shorter");

        let none = place.path().join("none");
        assert_failed(&does(&agent, read(&none, 0, 9)).await, nix::libc::ENOENT);
        assert_failed(
            &does(&agent, read(place.path(), 0, 9)).await,
            nix::libc::EISDIR,
        );
        let inside = file.join("x");
        let status = write(&agent, &inside, false, b"x").await;
        assert_eq!(status, Status::Exited(nix::libc::ENOTDIR as u8));
        // A pipe that nobody writes to is not waited for.
        let pipe = place.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_failed(&does(&agent, read(&pipe, 0, 9)).await, nix::libc::EINVAL);
    }
}

#[tokio::test]
async fn directories_are_made_listed_moved_and_removed() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let place = tempfile::tempdir().unwrap();
    let at = |path: &str| bytes(&place.path().join(path));
    let ok = |output: Output| assert!(output.outcome.success(), "{output:?}");
    ok(does(&agent, FileRequest::CreateDir { path: at("a/b") }).await);
    ok(does(&agent, FileRequest::CreateDir { path: at("a/b") }).await);
    fs::write(place.path().join("a/file"), "123").unwrap();
    // Whatever is wrong, it is a directory of this test's own that it would be done to.
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("kept"), "x").unwrap();
    symlink(other.path(), place.path().join("a/link")).unwrap();

    let list = |path, most| FileRequest::List { path, most };
    let out = does(&agent, list(at("a"), 10)).await;
    let mut records = FileRecords::default();
    records.feed(&out.stdout);
    let mut found = Vec::new();
    while let Some(entry) = records.next_entry().unwrap() {
        found.push((
            entry.name.to_str().unwrap().to_owned(),
            entry.kind,
            entry.target,
        ));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        found,
        [
            ("b".to_owned(), FileKind::Directory, None),
            ("file".to_owned(), FileKind::File, None),
            (
                "link".to_owned(),
                FileKind::Symlink,
                Some(other.path().into())
            ),
        ]
    );
    assert_failed(
        &does(&agent, list(at("a"), 2)).await,
        exit_code::TOO_MANY_ENTRIES.into(),
    );
    assert_failed(
        &does(&agent, list(at("a/file"), 2)).await,
        nix::libc::ENOTDIR,
    );

    for (follow, kind) in [(false, FileKind::Symlink), (true, FileKind::Directory)] {
        let path = at("a/link");
        let out = does(&agent, FileRequest::Stat { path, follow }).await;
        let mut records = FileRecords::default();
        records.feed(&out.stdout);
        assert_eq!(records.next_entry().unwrap().unwrap().kind, kind);
    }

    let (from, to) = (at("a"), at("moved"));
    ok(does(&agent, FileRequest::Rename { from, to }).await);
    assert!(place.path().join("moved/b").is_dir());
    let (from, to) = (at("moved"), at("moved/b/c"));
    assert_failed(
        &does(&agent, FileRequest::Rename { from, to }).await,
        nix::libc::EINVAL,
    );
    ok(does(
        &agent,
        FileRequest::Remove {
            path: at("moved/link"),
        },
    )
    .await);
    assert!(other.path().join("kept").exists());
    symlink(other.path(), place.path().join("moved/again")).unwrap();
    ok(does(&agent, FileRequest::Remove { path: at("moved") }).await);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    assert!(other.path().join("kept").exists());
    assert_failed(
        &does(&agent, FileRequest::Remove { path: at("moved") }).await,
        nix::libc::ENOENT,
    );
}

/// The next event of a watch.
async fn event(records: &mut FileRecords, stdout: &mut ProcessOutput) -> (FileChange, String) {
    loop {
        if let Some(event) = records.next_event().unwrap() {
            return (event.change, event.name.into_string().unwrap());
        }
        let mut buffer = [0; 1000];
        let count = stdout.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the watch has ended");
        records.feed(&buffer[..count]);
    }
}

#[tokio::test]
async fn changes_are_told() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let place = tempfile::tempdir().unwrap();
    let path = bytes(place.path());
    let mut process = spawn(&agent, Command::files(&FileRequest::Watch { path })).await;
    let mut stdout = process.take_stdout().unwrap();
    let records = &mut FileRecords::default();
    use FileChange::*;
    assert_eq!(event(records, &mut stdout).await, (Watching, String::new()));
    let file = place.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_eq!(event(records, &mut stdout).await, (Created, "file".into()));
    assert_eq!(event(records, &mut stdout).await, (Written, "file".into()));
    fs::remove_file(&file).unwrap();
    assert_eq!(event(records, &mut stdout).await, (Removed, "file".into()));
    place.close().unwrap();
    assert_eq!(event(records, &mut stdout).await, (Removed, String::new()));
    assert!(process.wait().await.unwrap().success());
    // Whoever stops listening ends it.
    let place = tempfile::tempdir().unwrap();
    let path = bytes(place.path());
    let process = spawn(&agent, Command::files(&FileRequest::Watch { path })).await;
    let pid = process.pid();
    drop(process);
    crate::common::eventually("the watch ends", || !test.children().contains(&pid)).await;
}

#[tokio::test]
async fn trees_go_out_and_in() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(one.path().join("d/e")).unwrap();
    fs::write(one.path().join("d/e/f"), vec![7; 500_000]).unwrap();
    fs::write(one.path().join("g"), "g").unwrap();
    symlink("g", one.path().join("h")).unwrap();
    let pack = |patterns: &[&str], bytes_, lenient| FileRequest::Pack {
        path: bytes(one.path()),
        bytes: bytes_,
        entries: 100,
        lenient,
        patterns: patterns.iter().map(|it| it.as_bytes().to_vec()).collect(),
    };
    let out = does(&agent, pack(&[], 1 << 20, false)).await;
    assert!(
        out.outcome.success() && out.stderr.is_empty(),
        "{:?}",
        out.outcome
    );
    let archive = out.stdout;

    let path = bytes(&two.path().join("new/place"));
    let unpack = FileRequest::Unpack { path };
    let mut process = spawn(&agent, Command::files(&unpack)).await;
    let mut stdin = process.take_stdin().unwrap();
    stdin.write_all(&archive).await.unwrap();
    drop(stdin);
    assert!(process.wait().await.unwrap().success());
    let there = two.path().join("new/place");
    assert_eq!(fs::read(there.join("d/e/f")).unwrap(), vec![7; 500_000]);
    assert_eq!(fs::read_link(there.join("h")).unwrap(), Path::new("g"));

    assert_failed(
        &does(&agent, pack(&[], 1000, false)).await,
        exit_code::TOO_MANY_BYTES.into(),
    );
    let out = does(&agent, pack(&["g", "d/e/*", "none"], 100_000, true)).await;
    assert!(out.outcome.success(), "{out:?}");
    let notes: Vec<_> = FileNote::decode_all(&out.stderr).collect();
    let left_out = |path: &str, why: &str| FileNote::LeftOut {
        path: path.into(),
        why: why.into(),
    };
    assert_eq!(
        notes,
        [
            left_out("d/e/f", "too large"),
            left_out("none", "not found")
        ]
    );
    assert_failed(
        &does(&agent, pack(&["../x"], 1000, true)).await,
        exit_code::REFUSED.into(),
    );
    // No archive at all.
    let command = Command::files(&unpack).stdin(Stdin::Null);
    let mut process = spawn(&agent, command).await;
    assert!(process.wait().await.unwrap().success(), "an empty one");
    let mut process = spawn(&agent, Command::files(&unpack)).await;
    let mut stdin = process.take_stdin().unwrap();
    stdin.write_all(&[7; 2000]).await.unwrap();
    drop(stdin);
    let status = process.wait().await.unwrap().status;
    assert_eq!(status, Status::Exited(exit_code::REFUSED));
}

/// It is a command like any other.
#[tokio::test]
async fn relative_paths_begin_where_the_command_does() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), "here").unwrap();
    let request = FileRequest::Read {
        path: b"file".to_vec(),
        offset: 0,
        length: 10,
    };
    let command = Command::files(&request).current_dir(place.path());
    assert_eq!(output(&agent, command).await.stdout, b"here");
    let wrong = Command::files(&request).arg("more");
    let status = output(&agent, wrong).await.outcome.status;
    assert_eq!(status, Status::Exited(exit_code::USAGE));
}
