use super::*;

fn brought() -> Shelf {
    Shelf::default()
}

fn refused(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.toml");
    fs::write(&path, text).unwrap();
    let error = brought().read(&path).unwrap_err();
    error.to_string()
}

#[test]
fn every_pack_that_is_brought_can_be_read() {
    for pack in ember_guest::packs::PACKS {
        let recipe = brought().find(pack.name).unwrap();
        assert_eq!(recipe.name, pack.name);
        assert_eq!(recipe.texts.last().unwrap(), pack.recipe);
        assert_eq!(recipe.account.user, "user", "{}", pack.name);
        for language in recipe.own_languages() {
            assert!(language.package.is_some(), "{}", language.name);
        }
    }
}

#[test]
fn all_languages_are_in_the_one_pack_and_each_name_and_extension_is_ones_own() {
    let recipe = brought().find("multi").unwrap();
    let mut names = HashSet::new();
    for language in &recipe.languages {
        for name in std::iter::once(&language.name).chain(&language.aliases) {
            assert!(names.insert(name.clone()), "{name} twice");
        }
        for extension in &language.extensions {
            assert!(names.insert(format!(".{extension}")), ".{extension} twice");
        }
    }
    for name in [
        "python",
        "javascript",
        "typescript",
        "csharp",
        "cpp",
        "c",
        "rust",
        "go",
        "ruby",
        "bash",
    ] {
        assert!(names.contains(name), "{name}");
    }
    // What several include comes once.
    let users = recipe.files.iter().filter(|it| it.path == "/etc/passwd");
    assert_eq!(users.count(), 1);
}

#[test]
fn an_unknown_pack_is_refused_with_those_that_there_are() {
    let text = brought().find("cobol").unwrap_err().to_string();
    assert!(text.contains("cobol") && text.contains("python"), "{text}");
    for hostile in ["../python", "", ".", "/etc/passwd", "a/b"] {
        assert!(brought().find(hostile).is_err(), "{hostile}");
    }
}

#[test]
fn a_users_recipes_include_each_other_and_are_found_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write(
        "lua.toml",
        "name = 'lua'\ninclude = ['tools', 'base']\npackages = ['lua5.4']\n\
         [[language]]\nname = 'lua'\nextensions = ['lua']\ninterpreter = ['/usr/bin/lua5.4']\n",
    );
    // A circle is not followed for ever.
    write(
        "tools.toml",
        "name = 'tools'\ninclude = ['lua']\npackages = ['jq']\n",
    );
    // What Ember brings is not replaced.
    write(
        "python.toml",
        "name = 'python'\npackages = ['something-else']\n",
    );

    let shelf = Shelf::at(directory.path());
    assert!(shelf.names().contains(&"lua".to_owned()));
    assert_eq!(shelf.names().iter().filter(|it| *it == "python").count(), 1);
    let lua = shelf.find("lua").unwrap();
    assert!(lua.packages.contains(&"jq".to_owned()) && lua.packages.contains(&"bash".to_owned()));
    assert_eq!(lua.own_languages().len(), 1);
    assert_eq!(lua.texts.len(), 3);
    assert!(
        shelf
            .find("python")
            .unwrap()
            .packages
            .contains(&"python3".to_owned())
    );

    // By its path it needs no shelf.
    let lua = brought().read(&directory.path().join("lua.toml")).unwrap();
    assert_eq!(lua.name, "lua");
}

#[test]
fn what_is_wrong_with_a_recipe_is_said() {
    let language = "name = 'x'\npackages = ['y']\n[[language]]\nname = 'l'\n";
    for (text, part) in [
        (
            "name = 'x'\npackages = []\ndropp = []\n".to_owned(),
            "dropp",
        ),
        ("name = '../x'\n".to_owned(), "no name"),
        ("name = 'x'\n".to_owned(), "no packages"),
        ("name = 'x'\ninclude = ['nothing']\n".to_owned(), "nothing"),
        (format!("{language}extensions = []\n"), "no extension"),
        (
            format!("{language}extensions = ['.l']\n"),
            "without the dot",
        ),
        (
            format!("{language}extensions = ['l']\n"),
            "neither an interpreter",
        ),
        (
            format!("{language}extensions = ['l']\nversion = '3'\n"),
            "learned from the image",
        ),
        (
            format!("{language}extensions = ['l']\ncompile = {{ command = [] }}\n"),
            "needs a command",
        ),
        (
            format!("{language}extensions = ['l']\ncompile = {{ command = ['c'], into = 'm' }}\n"),
            "`into`",
        ),
    ] {
        let said = refused(&text);
        assert!(said.contains(part), "{text}: {said}");
    }
}
