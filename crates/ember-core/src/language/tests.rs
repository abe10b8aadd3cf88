use super::*;

fn python() -> Language {
    Language {
        name: "python".to_owned(),
        aliases: vec!["py".to_owned()],
        version: Some("3.11.2".to_owned()),
        ..Language::default()
    }
}

#[test]
fn a_language_answers_to_its_names_and_as_much_of_its_version_as_is_asked_for() {
    for name in [
        "python",
        "py",
        "python3",
        "py3",
        "python3.11",
        "python-3.11",
        "python@3.11.2",
    ] {
        assert!(python().answers_to(name), "{name}");
    }
    for name in [
        "python2",
        "python3.1",
        "python3.12",
        "python3.11.2.1",
        "python3.",
        "python-",
        "pythonx",
        "Python",
        "",
    ] {
        assert!(!python().answers_to(name), "{name}");
    }
    let unknown = Language {
        version: None,
        ..python()
    };
    assert!(unknown.answers_to("python"));
    assert!(!unknown.answers_to("python3"));
    assert!(unknown.may_answer_to("python3") && !unknown.may_answer_to("pythonx"));
    assert!(!python().may_answer_to("python3"));
}

#[test]
fn versions_are_without_what_debian_adds() {
    for (version, upstream) in [
        ("3.11.2-1+b1", "3.11.2"),
        ("4:12.2.0-3", "12.2.0"),
        ("18.20.4+dfsg-1~deb12u1", "18.20.4"),
        ("1:3.1", "3.1"),
        ("2:1.19~1", "1.19"),
        ("6.8.0.105+dfsg-3.3+deb12u1", "6.8.0.105"),
        ("5.2.15-2+b13", "5.2.15"),
        ("", ""),
    ] {
        assert_eq!(upstream_version(version), upstream);
    }
}
