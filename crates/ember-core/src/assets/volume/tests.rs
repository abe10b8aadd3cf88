use super::*;
use crate::ErrorKind;

#[test]
fn what_is_there_says_what_a_volume_is_made_of() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("data")).unwrap();
    fs::write(at("data/a"), "one").unwrap();
    let mut tar = tar::Builder::new(File::create(at("data.tar")).unwrap());
    tar.append_dir_all(".", at("data")).unwrap();
    tar.finish().unwrap();
    let assets = Assets::at(at("cache"));

    let volume = Volume::at(at("data"));
    assert_eq!(volume, Volume::directory(at("data")));
    assert_eq!(volume.to_string(), at("data").display().to_string());
    let made = assets.volume(&volume).unwrap();
    assert_eq!(Volume::at(&made), Volume::file(&made));
    assert_eq!(assets.volume(&Volume::file(&made)).unwrap(), made);
    assert_eq!(Volume::at(at("data.tar")), Volume::archive(at("data.tar")));
    let of_archive = assets.volume(&Volume::at(at("data.tar"))).unwrap();
    assert_ne!(of_archive, made);

    // Kept by what is in it.
    assert_eq!(assets.volume(&volume).unwrap(), made);
    fs::write(at("data/a"), "another").unwrap();
    let anew = assets.volume(&volume).unwrap();
    assert_ne!(anew, made);
    assert!(made.exists(), "others may have it");
}

#[test]
fn what_is_no_squashfs_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("text"), "hsqs but not really").unwrap();
    let assets = Assets::at(at("cache"));
    for wrong in [at("text"), directory.path().to_owned(), "/dev/null".into()] {
        let error = assets.volume(&Volume::file(&wrong)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
        assert!(
            format!("{error:?}").contains("no squashfs file"),
            "{error:?}"
        );
    }
    let missing = assets.volume(&Volume::at(at("missing"))).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unprepared, "{missing:?}");
    assert!(format!("{missing:?}").contains("missing"), "{missing:?}");
}
