//! Files in before, and out after: `--put` and `--get`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use ember_core::{Copied, Error, Files};

use crate::arguments::{How, Transfers};

/// Files of the host that the guest gets, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    from: OsString,
    /// None: under its own name, where the program starts or where this runs.
    to: Option<OsString>,
}

impl Transfer {
    /// From `FROM:TO`, or `FROM` alone.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|&byte| byte == b':');
        let (from, to) = match colon {
            Some(place) => (&bytes[..place], Some(&bytes[place + 1..])),
            None => (bytes, None),
        };
        if from.is_empty() || to.is_some_and(<[u8]>::is_empty) {
            return Err("it is FROM:TO, or FROM alone".to_owned());
        }
        Ok(Self {
            from: OsString::from_vec(from.to_vec()),
            to: to.map(|to| OsString::from_vec(to.to_vec())),
        })
    }
}

/// The path where a program that starts as `how` says finds it.
fn in_guest(how: &How, path: &OsStr) -> PathBuf {
    match &how.workdir {
        Some(directory) => Path::new(directory).join(path),
        None => path.into(),
    }
}

/// Copies into the guest what was asked for.
pub(crate) async fn put(files: &Files<'_>, transfers: &Transfers, how: &How) -> Result<()> {
    for Transfer { from, to } in &transfers.put {
        // Under its own name: `.` and `..` have none, and go where the program starts.
        let name = to.as_deref().or_else(|| Path::new(from).file_name());
        let copied = files.copy_in(from, in_guest(how, name.unwrap_or(OsStr::new("."))));
        tell(&copied.await.map_err(plain)?);
    }
    Ok(())
}

/// Copies out of the guest what was asked for. After a program that did not succeed (`is_well`),
/// what is missing is only told.
pub(crate) async fn get(
    files: &Files<'_>,
    transfers: &Transfers,
    how: &How,
    is_well: bool,
) -> Result<()> {
    for Transfer { from, to } in &transfers.get {
        match get_one(files, &in_guest(how, from), to.as_deref()).await {
            Ok(()) => {}
            Err(error) if is_well => return Err(plain(error)),
            Err(error) => eprintln!("ember: {:#}", plain(error)),
        }
    }
    Ok(())
}

/// Copies one thing out, or all that matches, if it is a pattern.
pub(crate) async fn get_one(
    files: &Files<'_>,
    from: &Path,
    to: Option<&OsStr>,
) -> Result<(), Error> {
    let is_pattern = from
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| b"*?[".contains(byte));
    if is_pattern {
        let found = files.collect([from]).await?;
        for left_out in found.left_out() {
            eprintln!("ember: {}: {}", left_out.path, left_out.reason);
        }
        tell(&found.unpack(to.unwrap_or(OsStr::new("."))).await?);
        return Ok(());
    }
    let name = to.or_else(|| from.file_name()).unwrap_or(OsStr::new("."));
    tell(&files.copy_out(from, name).await?);
    Ok(())
}

/// What is wrong with a file is not what the exit status says of a program.
pub(crate) fn plain(error: Error) -> anyhow::Error {
    anyhow::anyhow!("{:#}", anyhow::Error::from(error))
}

fn tell(copied: &Copied) {
    for path in &copied.left_out {
        eprintln!("ember: {path:?} was left out: it is no file, or a link that leads elsewhere");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_has_one_end_or_two() {
        let parse = |text: &str| Transfer::parse(OsStr::new(text));
        let both = parse("a b:/c:d").unwrap();
        assert_eq!((both.from, both.to), ("a b".into(), Some("/c:d".into())));
        assert_eq!(parse("a").unwrap().to, None);
        for wrong in ["", ":", "a:", ":b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_begin_where_the_program_starts() {
        let how = |workdir: Option<&str>| How {
            user: None,
            workdir: workdir.map(Into::into),
            env: Vec::new(),
        };
        let path = |workdir, path: &str| in_guest(&how(workdir), OsStr::new(path));
        assert_eq!(path(None, "x"), Path::new("x"));
        assert_eq!(path(Some("/w"), "x"), Path::new("/w/x"));
        assert_eq!(path(Some("/w"), "/x"), Path::new("/x"));
    }
}
