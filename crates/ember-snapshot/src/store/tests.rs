use std::convert::Infallible;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

/// The names in the store that an entry does not have.
fn hidden(store: &Store) -> Vec<String> {
    let names = store.names().unwrap().into_iter();
    names
        .filter(|name| name.starts_with('.') && name != LOCKS)
        .collect()
}

fn build(store: &Store, key: &str, content: &str) -> PathBuf {
    let fill = |path: &Path| fs::write(path.join("file"), content);
    store.build(key, fill).unwrap()
}

#[test]
fn an_entry_is_built_once_however_many_want_it() {
    let directory = tempfile::tempdir().unwrap();
    let builds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // A store of its own, as another process has: the lock is in the file system.
                let entry = Store::open(directory.path())
                    .build("key", |building| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                        fs::write(building.join("file"), "complete")
                    })
                    .unwrap();
                assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "complete");
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
    // The lock does not stay.
    assert_eq!(
        fs::read_dir(directory.path().join(LOCKS)).unwrap().count(),
        0
    );
}

#[test]
fn a_lock_is_held_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let (inside, entries) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let _lock = Lock::acquire(&path).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    assert!(Lock::try_acquire(&path).unwrap().is_none());
                    entries.fetch_add(1, Ordering::Relaxed);
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(entries.into_inner(), 1600);
    assert!(!path.exists());
}

#[test]
fn a_failed_build_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let result = store.build("key", |building| {
        fs::write(building.join("half"), "").unwrap();
        Err("no")
    });
    assert!(matches!(result, Err(BuildError::Build("no"))));
    assert_eq!(store.get("key").unwrap(), None);
    assert_eq!(hidden(&store), [] as [&str; 0]);
    // The next one may be luckier.
    build(&store, "key", "complete");
}

#[test]
fn what_an_interrupted_build_left_is_removed_and_what_goes_on_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    // Killed: the directories are there, nobody has the locks. The first is what is wanted now.
    for left in [".building-key", ".building-gone", ".removing-gone"] {
        let left = directory.path().join(left);
        fs::create_dir_all(left.join("deep")).unwrap();
        fs::write(left.join("deep/half"), "").unwrap();
    }
    // Being built elsewhere.
    let _busy = Lock::acquire(&store.lock_path("busy").unwrap()).unwrap();
    fs::create_dir(directory.path().join(".building-busy")).unwrap();

    let entry = store
        .build("key", |building| {
            assert_eq!(fs::read_dir(building).unwrap().count(), 0);
            Ok::<_, Infallible>(())
        })
        .unwrap();
    assert_eq!(fs::read_dir(entry).unwrap().count(), 0);
    assert_eq!(hidden(&store), [".building-busy"]);
}

#[test]
fn an_entry_is_claimed_by_one_and_replaced_when_the_new_one_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    build(&store, "key", "old");
    let old = File::open(store.directory().join("key/file")).unwrap();

    // Given up: the entry is what it was.
    let claim = store.claim("key").unwrap();
    assert!(store.try_claim("key").unwrap().is_none());
    assert!(store.try_claim("other").unwrap().is_some());
    fs::write(claim.begin().unwrap().join("file"), "half").unwrap();
    drop(claim);
    let content = || fs::read_to_string(store.directory().join("key/file")).unwrap();
    assert_eq!(content(), "old");
    assert_eq!(hidden(&store), [] as [&str; 0]);

    let claim = store.try_claim("key").unwrap().unwrap();
    assert!(claim.found().unwrap().is_some());
    fs::write(claim.begin().unwrap().join("file"), "new").unwrap();
    assert_eq!(content(), "old");
    claim.finish().unwrap();
    assert_eq!(content(), "new");
    assert_eq!(io::read_to_string(&old).unwrap(), "old");
    assert_eq!(hidden(&store), [] as [&str; 0]);
    assert!(store.try_claim("key").unwrap().is_some());
}

#[test]
fn entries_are_listed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("later"));
    assert_eq!(store.list().unwrap(), []);
    assert!(!store.remove("a").unwrap());
    build(&store, "b", &"x".repeat(10_000));
    build(&store, "a", "y");
    fs::write(store.directory().join("a file"), "").unwrap();
    let entries = store.list().unwrap();
    let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a", "b"]);
    assert!(entries[1].bytes >= 10_000);

    // To use one is remembered.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let entry = File::open(store.directory().join("a")).unwrap();
    entry.set_modified(long_ago).unwrap();
    assert_eq!(store.list().unwrap()[0].last_used, long_ago);
    let path = store.get("a").unwrap().unwrap();
    assert!(store.list().unwrap()[0].last_used > long_ago);

    // Who has a file keeps it.
    let mut file = File::open(path.join("file")).unwrap();
    assert!(store.remove("a").unwrap());
    assert!(!store.remove("a").unwrap());
    assert_eq!(store.get("a").unwrap(), None);
    assert_eq!(io::read_to_string(&mut file).unwrap(), "y");
    assert_eq!(hidden(&store), [] as [&str; 0]);
}

#[test]
fn a_directory_that_cannot_be_written_to_is_removed_nevertheless() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let fill = |path: &Path| {
        fs::create_dir(path.join("locked"))?;
        fs::write(path.join("locked/file"), "")?;
        fs::set_permissions(path.join("locked"), fs::Permissions::from_mode(0o500))
    };
    store.build("key", fill).unwrap();
    assert!(store.remove("key").unwrap());
}

#[test]
fn only_names_are_keys() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let long = "x".repeat(MAX_KEY + 1);
    for key in [
        "", ".", "..", ".hidden", "a/b", "/", "a\0", "a b", "ä", &long,
    ] {
        assert!(matches!(store.get(key), Err(StoreError::Key(_))), "{key:?}");
        assert!(
            matches!(store.remove(key), Err(StoreError::Key(_))),
            "{key:?}"
        );
        let built = store.build(key, |_| Ok::<_, Infallible>(()));
        assert!(matches!(built, Err(BuildError::Store(StoreError::Key(_)))));
    }
    build(&store, &"x".repeat(MAX_KEY), "");
    // Versions of Debian's packages have such.
    build(&store, "linux-6.12.117+deb12-1:6.12~deb12u1", "");
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let store = Store::open(directory.path().join("file/store"));
    let error = store.build("key", |_| Ok::<_, Infallible>(())).unwrap_err();
    assert!(error.to_string().contains("file/store"), "{error}");
}

/// Where the builder that is killed builds.
const VICTIM: &str = "EMBER_STORE_TEST_DIRECTORY";

/// How many files an entry of that builder has.
const FILES: usize = 40;

/// Not a test by itself: what the one below starts in processes of its own, and kills.
#[test]
#[ignore = "the victim of a_build_can_be_killed_at_any_moment, which starts it"]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM) else {
        return;
    };
    let store = Store::open(directory);
    loop {
        let fill = |path: &Path| {
            (0..FILES).try_for_each(|number| fs::write(path.join(number.to_string()), "content"))
        };
        store.build("key", fill).unwrap();
        store.remove("key").unwrap();
    }
}

#[test]
fn a_build_can_be_killed_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path());
    let complete = |path: &Path| fs::read_dir(path).is_ok_and(|files| files.count() == FILES);
    for round in 0..30 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "store::tests::victim"])
            .env(VICTIM, directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while victim.try_wait().unwrap().is_none() && !directory.path().join(LOCKS).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(15_000 + round * 731));
        victim.kill().unwrap();
        victim.wait().unwrap();
        // It looks finished only if it is.
        let found = directory.path().join("key");
        assert!(!found.exists() || complete(&found), "round {round}");
    }
    // The next builder tidies up after all of them.
    store.remove("key").unwrap();
    build(&store, "other", "");
    assert_eq!(hidden(&store), [] as [&str; 0]);
    assert_eq!(store.list().unwrap().len(), 1);
}
