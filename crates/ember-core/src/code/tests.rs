use super::program::INLINE_MAX;
use super::*;
use crate::language::{Account, Compiler};

fn languages() -> Vec<Language> {
    let python = Language {
        name: "python".to_owned(),
        extensions: vec!["py".to_owned()],
        version: Some("3.11.2".to_owned()),
        interpreter: vec!["/usr/bin/python3".to_owned()],
        inline: Some("-c".to_owned()),
        ..Language::default()
    };
    let compiler = |command: &[&str], into: Option<&str>| {
        Some(Compiler {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            output: "program".to_owned(),
            into: into.map(str::to_owned),
        })
    };
    let cpp = Language {
        name: "cpp".to_owned(),
        extensions: vec!["cpp".to_owned(), "cc".to_owned()],
        compile: compiler(&["/usr/bin/g++", "-o{output}", "{sources}"], None),
        ..Language::default()
    };
    let cython = Language {
        name: "cython".to_owned(),
        extensions: vec!["pyx".to_owned()],
        compile: compiler(&["/usr/bin/cython", "{source}"], Some("python")),
        ..Language::default()
    };
    vec![python, cpp, cython]
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
        Code::new("python2", ""),
    ] {
        let error = code.find_language(&languages()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("python 3.11.2 (.py)"), "{error}");
        assert!(code.find_language(&[]).is_err());
    }
    for code in [
        Code::python(""),
        Code::file("/x/program.py"),
        Code::file("/x/program").language("python"),
        Code::new("python3.11", ""),
    ] {
        assert_eq!(code.find_language(&languages()).unwrap().name, "python");
    }
}

#[test]
fn a_short_text_is_an_argument_and_a_long_one_a_file() {
    let program = prepared(Code::python("print(1)").arg("a").stdin("x"));
    assert!(program.files.is_empty());
    assert_eq!(program.input, b"x");
    let shown = format!("{:?}", program.command);
    assert!(shown.contains("user"), "{shown}");

    let long = "#".repeat(INLINE_MAX + 1);
    let program = prepared(Code::python(long.clone()));
    let files = [("/tmp/program-7.py".to_owned(), long.into_bytes())];
    assert!(program.files == files);
    // What no argument can hold.
    assert!(!prepared(Code::python("'\0'")).files.is_empty());
}

#[test]
fn a_file_goes_to_the_home_under_its_own_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("my program.py");
    std::fs::write(&path, "print(2)").unwrap();
    let files = prepared(Code::file(&path)).files;
    let inside = "/home/user/my program.py".to_owned();
    assert_eq!(files, [(inside, b"print(2)".to_vec())]);

    let missing = directory.path().join("missing.py");
    let error = Code::file(&missing)
        .prepare(&languages(), &account(), 0)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("missing.py"), "{error}");
}

fn words(command: &ember_guest::host::Command) -> Vec<String> {
    let words = command.argv();
    words
        .map(|word| word.to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn other_files_are_beside_the_program_which_is_a_file_then() {
    let code = Code::python("import util").with_file("util.py", "x = 1");
    let program = prepared(code.with_file("data/in.txt", [0, 255]));
    let names: Vec<&str> = program.files.iter().map(|(name, _)| &**name).collect();
    let expected = [
        "/home/user/util.py",
        "/home/user/data/in.txt",
        "/home/user/main.py",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        words(&program.command),
        ["/usr/bin/python3", "/home/user/main.py"]
    );

    let long = "x".repeat(256);
    for path in [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a\0b",
        ".",
        &long,
    ] {
        let code = Code::python("").with_file(path, "");
        let error = code.prepare(&languages(), &account(), 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{path}");
    }
    for name in ["util.py", "main.py"] {
        let code = Code::python("")
            .with_file("util.py", "")
            .with_file(name, "");
        assert!(code.prepare(&languages(), &account(), 7).is_err(), "{name}");
    }
}

#[test]
fn what_is_compiled_is_named_by_all_that_goes_into_it() {
    let code = Code::new("cpp", "int main() {}")
        .with_file("-util.cc", "int x;")
        .with_file("util.h", "extern int x;")
        .arg("one");
    let program = prepared(code.clone());
    let build = program.build.unwrap();
    assert!(build.place.starts_with("/home/user/.ember/"), "{build:?}");
    assert_eq!(
        build.argv,
        [
            "/usr/bin/g++".to_owned(),
            format!("-o{}.7/program", build.place),
            "main.cpp".to_owned(),
            "./-util.cc".to_owned(),
        ]
    );
    assert_eq!(
        words(&program.command),
        [format!("{}/program", build.place), "one".to_owned()]
    );
    // Nothing but the sources, and not what the program is given.
    let place = |code: Code| prepared(code).build.unwrap().place;
    assert_eq!(place(code.clone().arg("two").stdin("x")), build.place);
    assert_ne!(place(code.with_file("more.h", "")), build.place);
    assert_ne!(place(Code::new("cpp", "int main() {}")), build.place);

    // A program in another language comes out, and its interpreter runs it.
    let program = prepared(Code::new("cython", "x"));
    let path = format!("{}/program", program.build.unwrap().place);
    assert_eq!(
        words(&program.command),
        ["/usr/bin/python3".to_owned(), path]
    );
}
