use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

fn variables<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<PathBuf> + 'a {
    |name| {
        set.iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| PathBuf::from(value))
    }
}

#[test]
fn the_place_is_chosen_by_the_most_specific_variable() {
    let all = [
        ("EMBER_CACHE", "/e"),
        ("XDG_CACHE_HOME", "/x"),
        ("HOME", "/h"),
    ];
    let root = |set: &[(&str, &str)]| Cache::choose(variables(set)).map(|cache| cache.root);
    assert_eq!(root(&all), Some("/e".into()));
    assert_eq!(root(&all[1..]), Some("/x/ember".into()));
    assert_eq!(root(&all[2..]), Some("/h/.cache/ember".into()));
    assert_eq!(
        root(&[("EMBER_CACHE", ""), all[2]]),
        Some("/h/.cache/ember".into())
    );
    assert_eq!(root(&[("XDG_CACHE_HOME", "x")]), None);
    assert_eq!(root(&[]), None);
}

#[test]
fn an_entry_is_built_once_however_many_want_it() {
    let directory = tempfile::tempdir().unwrap();
    let builds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // A cache of its own, as another process has: the lock is in the file system.
                let entry = Cache::at(directory.path())
                    .entry("things", "key", |building| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                        fs::write(building.join("file"), "complete").unwrap();
                        Ok::<_, CacheError>(())
                    })
                    .unwrap();
                assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "complete");
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
}

#[test]
fn a_failed_build_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let outcome = cache.entry("things", "key", |building| {
        fs::write(building.join("half"), "").unwrap();
        Err(CacheError::NoPlace)
    });
    assert!(outcome.is_err());
    assert_eq!(
        fs::read_dir(cache.root().join("things")).unwrap().count(),
        0
    );
}

#[test]
fn what_an_interrupted_build_left_is_removed_and_what_goes_on_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let things = cache.directory("things").unwrap();
    // Killed: the directories are there, nobody has the locks. The first is what is wanted now.
    for key in ["key", "gone"] {
        let left = things.join(format!("{BUILDING}{key}"));
        fs::create_dir_all(left.join("deep")).unwrap();
        fs::write(left.join("deep/half"), "").unwrap();
    }
    // Being built elsewhere.
    let _busy = cache.lock(&lock_name("things", "busy")).unwrap();
    fs::create_dir(things.join(format!("{BUILDING}busy"))).unwrap();

    let entry = cache
        .entry("things", "key", |building| {
            assert_eq!(fs::read_dir(building).unwrap().count(), 0);
            Ok::<_, CacheError>(())
        })
        .unwrap();
    assert_eq!(fs::read_dir(entry).unwrap().count(), 0);
    assert!(!things.join(format!("{BUILDING}gone")).exists());
    assert!(things.join(format!("{BUILDING}busy")).exists());
}

#[test]
fn a_pointer_says_what_it_was_last_set_to() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    assert_eq!(cache.pointer("a/b").unwrap(), None);
    cache.set_pointer("a/b", "one").unwrap();
    cache.set_pointer("a/b", "two").unwrap();
    assert_eq!(cache.pointer("a/b").unwrap().as_deref(), Some("two"));
    assert_eq!(fs::read_dir(cache.root().join("a")).unwrap().count(), 1);
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let cache = Cache::at(directory.path().join("file/cache"));
    let error = cache
        .entry("things", "key", |_| Ok::<_, CacheError>(()))
        .unwrap_err();
    assert!(error.to_string().contains("file/cache"), "{error}");
}
