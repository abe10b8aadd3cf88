//! `ember cp`: files of an image, out to this host.
//!
//! A guest ends with the invocation that has it, so there is none to copy from or to but an image's. What
//! goes into one, goes with the program that wants it: `--put` of `ember run` and `ember exec`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use ember_core::{Image, Sandbox};

use crate::arguments::{Common, Copy};
use crate::guest::with_guest;
use crate::transfer::{get_one, plain};

/// A file or directory in an image.
#[derive(Debug, Clone)]
pub(crate) struct InImage {
    image: Image,
    path: PathBuf,
}

impl InImage {
    /// From `IMAGE:/PATH`. An image's name may have colons, but none before a slash.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let wrong = "it is IMAGE:/PATH: what is copied comes out of an image. To copy into a guest, \
                     give `ember run` or `ember exec` --put";
        let place = bytes.windows(2).position(|two| two == b":/");
        let Some(place) = place.filter(|&place| place > 0) else {
            return Err(wrong.to_owned());
        };
        let image = std::str::from_utf8(&bytes[..place]).map_err(|error| error.to_string())?;
        Ok(Self {
            image: Image::named(image),
            path: OsStr::from_bytes(&bytes[place + 1..]).into(),
        })
    }
}

pub(crate) async fn copy(options: &Copy, common: &Common) -> Result<ExitCode> {
    let common = Common {
        image: Some(options.from.image.clone()),
        pack_file: None,
        ..common.clone()
    };
    with_guest(&common, async |sandbox: Sandbox| {
        let outcome = copy_out(&sandbox, &options.from.path, &options.to).await;
        (sandbox, outcome.map(|()| ExitCode::SUCCESS))
    })
    .await
}

async fn copy_out(sandbox: &Sandbox, from: &Path, to: &OsString) -> Result<()> {
    let files = sandbox.files().as_root();
    get_one(&files, from, Some(to)).await.map_err(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_begins_behind_the_first_colon_before_a_slash() {
        for (text, image, path) in [
            ("python:/etc/passwd", "python", "/etc/passwd"),
            ("debian:12:/a:/b", "debian:12", "/a:/b"),
            ("host:5000/a/b@sha256:00:/", "host:5000/a/b@sha256:00", "/"),
            ("./root.tar:/etc", "./root.tar", "/etc"),
        ] {
            let parsed = InImage::parse(OsStr::new(text)).unwrap();
            assert_eq!(parsed.image, Image::named(image), "{text}");
            assert_eq!(parsed.path, Path::new(path), "{text}");
        }
        for wrong in ["", "python", "/etc/passwd", ":/etc", "python:etc"] {
            assert!(InImage::parse(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }
}
