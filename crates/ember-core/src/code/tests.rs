use super::*;

fn languages() -> Vec<Language> {
    vec![Language {
        name: "python".to_owned(),
        extensions: vec!["py".to_owned()],
        interpreter: vec!["/usr/bin/python3".to_owned()],
        inline: "-c".to_owned(),
        runner: Vec::new(),
    }]
}

fn account() -> Account {
    Account {
        user: "user".to_owned(),
        home: "/home/user".to_owned(),
    }
}

fn prepared(code: Code) -> Program {
    code.prepare(&languages(), &account(), 7).unwrap()
}

#[test]
fn a_language_that_is_not_there_is_refused_with_those_that_are() {
    for code in [
        Code::new("cobol", ""),
        Code::file("/x/program.cob"),
        Code::file("/x/program"),
        Code::file("/x/program.py").language("cobol"),
    ] {
        let error = code.find_language(&languages()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("python (.py)"), "{error}");
        assert!(code.find_language(&[]).is_err());
    }
    for code in [
        Code::python(""),
        Code::file("/x/program.py"),
        Code::file("/x/program").language("python"),
    ] {
        assert_eq!(code.find_language(&languages()).unwrap().name, "python");
    }
}

#[test]
fn a_short_text_is_an_argument_and_a_long_one_a_file() {
    let program = prepared(Code::python("print(1)").arg("a").stdin("x"));
    assert!(program.file.is_none());
    assert_eq!(program.input, b"x");
    let shown = format!("{:?}", program.command);
    assert!(shown.contains("user"), "{shown}");

    let long = "#".repeat(INLINE_MAX + 1);
    let program = prepared(Code::python(long.clone()));
    let (path, contents) = program.file.unwrap();
    assert_eq!(path, "/tmp/program-7.py");
    assert!(contents == long.into_bytes());
    // What no argument can hold.
    assert!(prepared(Code::python("'\0'")).file.is_some());
}

#[test]
fn a_file_goes_to_the_home_under_its_own_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("my program.py");
    std::fs::write(&path, "print(2)").unwrap();
    let (inside, contents) = prepared(Code::file(&path)).file.unwrap();
    assert_eq!(inside, "/home/user/my program.py");
    assert_eq!(contents, b"print(2)");

    let missing = directory.path().join("missing.py");
    let error = Code::file(&missing)
        .prepare(&languages(), &account(), 0)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("missing.py"), "{error}");
}
