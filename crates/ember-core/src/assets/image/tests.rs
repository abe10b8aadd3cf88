use super::*;

#[test]
fn a_version_is_that_of_the_first_package_that_matches() {
    let packages = "golang-1.19-go 1.19.8-2\ngolang-1.19-src 1.19.8-2\ng++ 4:12.2.0-3\n";
    assert_eq!(version_of("golang-*-go", packages), Some("1.19.8"));
    assert_eq!(version_of("g++", packages), Some("12.2.0"));
    assert_eq!(version_of("g", packages), None);
}

#[test]
fn all_packs_are_listed_with_their_own_languages_whether_built_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("packs");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("mine.toml"), "nonsense").unwrap();
    let assets = Assets::at(directory.path().join("cache"));
    let listed = || packs(&assets, &Shelf::at(&own)).unwrap();
    let find = |name: &str| listed().into_iter().find(|it| it.name == name).unwrap();

    let names =
        |pack: &Pack| -> Vec<String> { pack.languages.iter().map(|it| it.name.clone()).collect() };
    assert_eq!(names(&find("typescript")), ["typescript"]);
    assert_eq!(names(&find("cpp")), ["cpp", "c"]);
    assert!(names(&find("multi")).len() >= 9 && find("multi").is_collection);
    assert!(!find("cpp").is_collection);
    assert_eq!(find("ruby").file, None);
    assert_eq!(find("ruby").languages[0].version, None);
    assert!(find("mine").problem.unwrap().contains("mine.toml"));

    // The first that may have it is chosen; what all lack is refused.
    let chosen = |name: &str| assets.image_for(&crate::Code::new(name, ""));
    assert_eq!(chosen("c++").unwrap(), Image::pack("cpp"));
    assert_eq!(chosen("ruby3.1").unwrap(), Image::pack("ruby"));
    let error = chosen("cobol").unwrap_err().to_string();
    assert!(
        error.contains("python") && error.contains("cobol"),
        "{error}"
    );

    // As if it had been built.
    let recipe = Shelf::at(&own).find("ruby").unwrap();
    let build = Build::of(&recipe);
    let image = directory.path().join("cache/images/ruby.1");
    fs::create_dir_all(&image).unwrap();
    fs::write(image.join(PACKAGES), "ruby 1:3.1\n").unwrap();
    assets.cache.set_pointer(&build.pointer, "ruby.1").unwrap();
    let ruby = find("ruby");
    assert_eq!(ruby.file, Some(image.join(FILE)));
    assert_eq!(ruby.languages[0].version.as_deref(), Some("3.1"));
    assert!(ruby.languages[0].answers_to("ruby3"));
    let error = chosen("ruby2").unwrap_err().to_string();
    assert!(error.contains("ruby 3.1 (.rb)"), "{error}");
}

#[test]
fn packages_are_the_same_image_in_any_order_and_are_named_by_their_list() {
    let image = Image::packages(["make", "git", "make"]);
    assert_eq!(image, Image::named("packages:git,make"));
    assert_eq!(image.to_string(), "packages:git,make");
    // Who has an image of this name in a registry says so.
    assert_eq!(Image::named("oci:packages:1"), Image::oci("packages:1"));

    let directory = tempfile::tempdir().unwrap();
    let assets = Assets::at(directory.path());
    for wrong in [
        "packages:",
        "packages:git,",
        "packages:-y",
        "packages:a/b",
        "packages:Git x",
    ] {
        let error = assets.image(&Image::named(wrong)).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::InvalidRequest, "{wrong}");
    }

    // As if they had been built: each list is one of its own, and what every pack has comes along.
    let built = |names: &str, key: &str| {
        let image = Image::named(&format!("packages:{names}"));
        let Source::Packages(list) = &image.0 else {
            panic!("no packages");
        };
        let recipe = Shelf::of_packages(list).unwrap();
        assert!(recipe.packages.contains(&"bash".to_owned()));
        let build = Build::of(&recipe);
        let place = directory.path().join("images").join(key);
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(PACKAGES), "git 1\n").unwrap();
        let text = format!("{key} {image}");
        assets.cache.set_pointer(&build.pointer, &text).unwrap();
        image
    };
    let (git, both) = (built("git", "packages.1"), built("git,make", "packages.2"));
    let ready = assets.image(&git).unwrap();
    assert_eq!(
        ready.file,
        directory.path().join("images/packages.1").join(FILE)
    );
    assert_eq!(ready.account.user, "user");
    assert_ne!(assets.image(&both).unwrap().file, ready.file);
    let listed = assets.images().unwrap();
    let names: Vec<_> = listed
        .iter()
        .map(|it| (it.names[0].as_str(), it.kind))
        .collect();
    let kind = crate::ImageKind::Packages;
    assert_eq!(names, [("packages:git", kind), ("packages:git,make", kind)]);

    // They are no packs, which stay.
    assert!(
        assets
            .prune_images(&crate::Prune::unnamed())
            .unwrap()
            .is_empty()
    );
    let pruned = assets.prune_images(&crate::Prune::unnamed().all()).unwrap();
    assert_eq!(pruned, listed);
    assert!(stored_pointers(directory.path()).is_empty());
}

fn stored_pointers(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache.join("images")).unwrap().flatten();
    let files = entries.map(|it| it.path()).filter(|it| it.is_file());
    files.collect()
}
