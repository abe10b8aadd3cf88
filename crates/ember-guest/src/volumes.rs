//! Where a guest's volumes are, as the kernel's command line says it to the agent:
//! `ember.volume=DEVICE:PATH`, once for each. Without I/O, for both sides.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// The most volumes that a guest can have.
pub const MAX_VOLUMES: usize = 8;
/// The longest path that one can be at, in bytes.
pub const MAX_PATH: usize = 255;
/// The longest that all words about volumes can be together, in bytes: a kernel reads 2,047, and
/// there are others.
pub const MAX_WORDS: usize = 1536;

/// Where nothing can be mounted, at it or below: the kernel's own, and the agent's.
const TREES: [&str; 4] = ["/proc", "/sys", "/dev", "/run/ember"];
/// Where nothing can be mounted, though below it can: the agent puts there what makes a guest itself.
const PLACES: [&str; 2] = ["/etc", "/run"];

/// Why a volume cannot be at a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It does not begin at the root.
    #[error("it has to be absolute")]
    Relative,
    /// It is the root.
    #[error("that is the image's own place")]
    Root,
    /// It leads upwards.
    #[error("it must not have `..` in it")]
    Parent,
    /// It is where the guest has something of its own.
    #[error("{0} is the guest's own")]
    Reserved(&'static str),
    /// It is longer than [`MAX_PATH`], or is none.
    #[error("it is no path of at most {MAX_PATH} bytes")]
    NoPath,
}

/// The path without what means nothing in it, if a volume can be there.
///
/// # Errors
/// What is wrong with it.
pub fn place(path: &Path) -> Result<PathBuf, PlaceError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH || bytes.contains(&0) {
        return Err(PlaceError::NoPath);
    }
    let mut place = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => return Err(PlaceError::Parent),
            Component::CurDir => {}
            other => place.push(other),
        }
    }
    if !place.is_absolute() {
        return Err(PlaceError::Relative);
    }
    if place == Path::new("/") {
        return Err(PlaceError::Root);
    }
    let is_below = TREES.iter().find(|it| place.starts_with(it));
    let is_at = PLACES.iter().find(|it| place == Path::new(it));
    match is_below.or(is_at) {
        Some(reserved) => Err(PlaceError::Reserved(reserved)),
        None => Ok(place),
    }
}

/// Whether one of the two is the other, or in it: the volume there would hide the other one, or have
/// to be written to.
pub fn collide(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// The word that says that the volume number `index`, from 0, is at `place`.
pub fn word(index: usize, place: &Path) -> String {
    format!("ember.volume={}:{}", device(index), escape(place))
}

/// The device of the volume number `index`, from 0: disks are named in their order, and the first one
/// is the root. Behind those of all volumes is the one that is written to, if there is one.
pub fn device(index: usize) -> String {
    let letter = ('b'..='z').nth(index).unwrap_or('z');
    format!("/dev/vd{letter}")
}

/// Device and path of what stands behind `ember.volume=`; none if it is not that.
pub fn parse(value: &str) -> Option<(PathBuf, PathBuf)> {
    let (device, path) = value.split_once(':')?;
    let path = unescape(path)?;
    let is_one = device.starts_with("/dev/") && path.is_absolute();
    is_one.then(|| (device.into(), path))
}

/// The kernel takes blanks and quotation marks for its own: whatever is unusual is written as `%` and
/// two hexadecimal digits.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                text.push(byte.into());
            }
            _ => {
                // Writing to a string does not fail.
                let _ = write!(text, "%{byte:02x}");
            }
        }
    }
    text
}

fn unescape(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        rest = after;
        let digits = digits.iter().map(|&it| {
            char::from(it)
                .to_digit(16)
                .and_then(|it| u8::try_from(it).ok())
        });
        let digits: Option<Vec<u8>> = digits.collect();
        bytes.push(digits?.iter().fold(0, |byte, digit| byte << 4 | digit));
    }
    Some(OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests;
