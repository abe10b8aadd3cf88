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
fn an_entry_is_built_once_and_a_failed_build_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let failed = cache.entry("things", "key", |building| {
        fs::write(building.join("half"), "").unwrap();
        Err(CacheError::NoPlace)
    });
    assert!(matches!(failed, Err(CacheError::NoPlace)));
    let entry = cache.entry("things", "key", |building| {
        fs::write(building.join("file"), "complete").map_err(io_error("write", building))
    });
    let again = cache.entry("things", "key", |_| Err(CacheError::NoPlace));
    assert_eq!(entry.unwrap(), directory.path().join("things/key"));
    assert!(again.unwrap().join("file").exists());
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
