//! Whether a file is still what it was, without reading it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes when a file does.
///
/// Kernels and images are hundreds of megabytes, and are asked for each time that a template is.
/// What the cache has never changes under its name, which is made from what went into it: its name
/// in the cache, size and time of modification in whole seconds stand for it, which a copy of the
/// cache keeps (also as a layer of a container's image). Any other file is its owner's to change in
/// any way: there it is the path, the size and both times to the nanosecond, the second of which
/// (that of the last change of the inode) no program can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    text: String,
    cache: PathBuf,
}

impl Stamp {
    pub(super) fn of(cache: &Path, path: &Path, file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (bytes, seconds) = (metadata.size(), metadata.mtime());
        let text = match path.strip_prefix(cache) {
            Ok(name) => format!("{} of {bytes} bytes at {seconds}", name.display()),
            Err(_) => format!(
                "{} of {bytes} bytes at {seconds}.{:09}, changed {}.{:09}",
                std::path::absolute(path)?.display(),
                metadata.mtime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ),
        };
        Ok(Self {
            text,
            cache: cache.to_owned(),
        })
    }

    /// Whether `file`, which was opened as `path`, is what it was.
    pub(crate) fn holds_for(&self, path: &Path, file: &File) -> bool {
        Self::of(&self.cache, path, file).is_ok_and(|now| now == *self)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_file_that_was_changed_is_another_and_a_copied_cache_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (cache, copy) = (
            directory.path().join("cache"),
            directory.path().join("copy"),
        );
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 5);
        let stamp = |root: &Path, name: &str| {
            let path = root.join(name);
            Stamp::of(&cache, &path, &File::open(&path).unwrap()).unwrap()
        };
        for root in [&cache, &copy] {
            fs::create_dir(root).unwrap();
            fs::write(root.join("a"), "one").unwrap();
            File::options()
                .write(true)
                .open(root.join("a"))
                .unwrap()
                .set_modified(time)
                .unwrap();
        }
        let inside = stamp(&cache, "a");
        let path = copy.join("a");
        let moved = Stamp::of(&copy, &path, &File::open(&path).unwrap()).unwrap();
        assert_eq!(inside.text, moved.text);
        assert_eq!(inside.to_string(), "a of 3 bytes at 1000000");

        // Outside: the same size, and its time put back.
        let outside = stamp(&copy, "a");
        assert_eq!(outside, stamp(&copy, "a"));
        fs::write(&path, "two").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
        assert_ne!(outside, stamp(&copy, "a"));
    }
}
