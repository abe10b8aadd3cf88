//! The volumes of a guest: where each is, and the file that it is on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ember_guest::volumes::{MAX_VOLUMES, MAX_WORDS, collide, place, word};

use crate::assets::{Assets, Volume};
use crate::error::{Error, ErrorKind};

/// A volume whose file is there.
#[derive(Debug, Clone)]
pub(crate) struct ReadyVolume {
    /// Where it is in the guest.
    pub(crate) place: PathBuf,
    pub(crate) file: PathBuf,
    /// The file, open: it may be removed, or another may come in its place.
    pub(crate) disk: Arc<File>,
}

/// Where the volumes that were asked for are, if they can be there.
pub(super) fn places(asked: &[(PathBuf, Volume)]) -> Result<Vec<PathBuf>, Error> {
    let refuse = |message: String| Err(Error::new(ErrorKind::InvalidRequest, message));
    if asked.len() > MAX_VOLUMES {
        return refuse(format!(
            "a guest has at most {MAX_VOLUMES} volumes, not {}",
            asked.len()
        ));
    }
    let mut places: Vec<PathBuf> = Vec::new();
    for (path, volume) in asked {
        let problem = |problem: &str| {
            let message = format!("the volume {volume} cannot be at {path:?} in the guest");
            format!("{message}: {problem}")
        };
        let place = match place(path) {
            Ok(place) => place,
            Err(error) => return refuse(problem(&error.to_string())),
        };
        match places.iter().find(|other| collide(other, &place)) {
            Some(other) if *other == place => return refuse(problem("another one is there")),
            Some(other) => {
                let nested = format!("another one is at {}", other.display());
                return refuse(problem(&format!(
                    "{nested}, and neither can be within the other"
                )));
            }
            None => places.push(place),
        }
    }
    let said: usize = words(&places).map(|word| word.len()).sum();
    if said > MAX_WORDS {
        return refuse(format!(
            "the paths of the volumes in the guest take {said} bytes of its kernel's command line, \
             and may take {MAX_WORDS}: choose shorter ones"
        ));
    }
    Ok(places)
}

/// What the kernel's command line says of volumes at these places, which is for the agent.
pub(super) fn words(places: &[PathBuf]) -> impl Iterator<Item = String> {
    places
        .iter()
        .enumerate()
        .map(|(index, place)| word(index, place))
}

/// Prepares `volume`, which is to be at `place`. Blocks.
pub(super) fn prepare(
    assets: &Assets,
    place: &Path,
    volume: &Volume,
) -> Result<ReadyVolume, Error> {
    let (file, disk) = assets.open_volume(volume).map_err(|error| {
        let message = format!("cannot use {volume} as the volume {}", place.display());
        Error::because(error.kind(), message, error)
    })?;
    Ok(ReadyVolume {
        place: place.to_owned(),
        file,
        disk: Arc::new(disk),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(paths: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let volume = |path: &&str| (PathBuf::from(path), Volume::file("data.squashfs"));
        places(&paths.iter().map(volume).collect::<Vec<_>>())
    }

    #[test]
    fn each_volume_has_a_place_of_its_own() {
        let places = asked(&["/data/", "/opt//models"]).unwrap();
        assert_eq!(places, ["/data", "/opt/models"].map(PathBuf::from));
        assert!(asked(&[]).unwrap().is_empty());
        for (paths, why) in [
            (
                &["data"][..],
                "\"data\" in the guest: it has to be absolute",
            ),
            (&["/"], "image's own place"),
            (&["/a/../b"], "`..`"),
            (&["/proc/x"], "/proc is the guest's own"),
            (&["/sys"], "/sys is the guest's own"),
            (&["/dev/"], "/dev is the guest's own"),
            (&["/a", "/b", "/a/"], "another one is there"),
            (&["/a/b", "/a"], "another one is at /a/b"),
        ] {
            let error = asked(paths).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{paths:?}");
            assert!(error.to_string().contains(why), "{paths:?}: {error}");
            assert!(error.to_string().contains("data.squashfs"), "{error}");
        }
    }

    #[test]
    fn there_is_a_bound_on_them() {
        let names: Vec<String> = (0..=MAX_VOLUMES).map(|it| format!("/v{it}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        asked(&names[1..]).unwrap();
        let error = asked(&names).unwrap_err();
        assert!(error.to_string().contains("at most 8 volumes"), "{error}");

        let long: Vec<String> = (0..7)
            .map(|it| format!("/{it}{}", "ü".repeat(100)))
            .collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        let error = asked(&long).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
    }
}
