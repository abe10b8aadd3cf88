//! Files that guests have beside their image: `--volume`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ember_core::Volume;

/// A volume, and where the guest has it.
#[derive(Debug, Clone)]
pub(crate) struct VolumeAt {
    pub(crate) place: PathBuf,
    pub(crate) volume: Volume,
}

impl VolumeAt {
    /// From `HOST:/PATH`. Where a guest cannot have one, the library says.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let wrong = "it is HOST:/PATH: a directory, tar file or squashfs file of this host, and the \
                     absolute path at which the guest has what is in it";
        // The last one: a path of this host may have such a colon in it, and need not in the guest.
        let place = bytes.windows(2).rposition(|two| two == b":/");
        let Some(place) = place.filter(|&place| place > 0) else {
            return Err(wrong.to_owned());
        };
        let (host, guest) = (&bytes[..place], &bytes[place + 1..]);
        Ok(Self {
            place: OsStr::from_bytes(guest).into(),
            volume: Volume::at(OsStr::from_bytes(host)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_path_begins_behind_the_last_colon_before_a_slash() {
        for (text, host, guest) in [
            ("./data:/opt/data", "./data", "/opt/data"),
            ("/a:b:/c:d", "/a:b", "/c:d"),
            ("/a:/b:/c", "/a:/b", "/c"),
        ] {
            let VolumeAt { place, volume } = VolumeAt::parse(OsStr::new(text)).unwrap();
            assert_eq!(place, Path::new(guest), "{text}");
            assert_eq!(volume.to_string(), host, "{text}");
        }
        for wrong in ["", "data", "data:", "data:opt", ":/opt", "/data"] {
            assert!(VolumeAt::parse(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }
}
