//! Paths as they stand in archives.

use super::{MAX_DEPTH, MAX_NAME, MAX_PATH, Refusal};

/// A path beneath a tree's directory: names with a slash between them, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inside(Vec<u8>);

impl Inside {
    /// Takes `./a//b/` for `a/b`; refuses what leads elsewhere. Empty is the tree's directory.
    pub(super) fn new(path: &[u8]) -> Result<Self, Refusal> {
        if path.first() == Some(&b'/') {
            return Err(Refusal::Absolute);
        }
        let mut clean = Vec::with_capacity(path.len().min(MAX_PATH));
        let mut depth = 0;
        for name in path.split(|&byte| byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(Refusal::Parent),
                _ => {}
            }
            depth += 1;
            if name.len() > MAX_NAME || name.contains(&0) || depth > MAX_DEPTH {
                return Err(Refusal::Path);
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name);
            if clean.len() > MAX_PATH {
                return Err(Refusal::Path);
            }
        }
        Ok(Self(clean))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory that it is in, and its name there. None of the tree's directory itself.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(place) => (&self.0[..place], &self.0[place + 1..]),
            None => (&[], &self.0),
        })
    }

    /// How many directories of the tree it is in.
    pub(super) fn depth(&self) -> usize {
        self.0.iter().filter(|&&byte| byte == b'/').count()
    }
}

/// Whether a link at `place` stays in the tree, whatever other links of which this holds are on its
/// way: it is not absolute, and goes up only at its beginning, and not further than the tree. The
/// directories above a link are directories, so going up from it means what it says; behind a name,
/// which may be a link's, it would not.
pub(super) fn stays_inside(place: &Inside, target: &[u8]) -> bool {
    if target.is_empty() || target.len() > MAX_PATH || target[0] == b'/' || target.contains(&0) {
        return false;
    }
    let mut names = target
        .split(|&byte| byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .peekable();
    let mut up = 0;
    while names.next_if(|name| *name == b"..").is_some() {
        up += 1;
    }
    up <= place.depth() && names.all(|name| name != b"..")
}
