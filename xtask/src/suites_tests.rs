use super::*;

fn parse(text: &str) -> (Report, bool) {
    let mut lines = Lines::default();
    text.lines().for_each(|line| lines.take(line));
    (lines.report("s"), lines.has_result)
}

#[test]
fn what_libtest_prints_is_counted() {
    let text = "\nrunning 4 tests\ntest a::works ... ok\ntest b ... FAILED\n\
        test c ... ignored, takes an hour\ntest d ... ok\n\nfailures:\n\n---- b stdout ----\n\
        test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; \
        finished in 0.00s\n";
    let (report, has_result) = parse(text);
    assert!(has_result);
    assert_eq!((report.passed, report.failed), (2, 1));
    assert_eq!(report.failures, ["s b"]);
    assert_eq!(report.ignored, ["s c"]);
}

#[test]
fn a_verdict_behind_a_tests_own_output_is_found() {
    let text = "test b ... some output\nFAILED\ntest c ... words\nok\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
    let (report, _) = parse(text);
    assert_eq!(report.failures, ["s b"]);
}

#[test]
fn doc_tests_of_several_crates_add_up() {
    let one = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
    let (report, _) = parse(&one.repeat(3));
    assert_eq!((report.passed, report.failed), (9, 0));
}

fn suite(script: &str) -> Suite {
    Suite {
        name: "p::t".to_owned(),
        executable: "/bin/sh".into(),
        directory: "/".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: Vec::new(),
        limit: TEST_LIMIT,
    }
}

/// What it prints must not be taken for what these tests report.
fn run_quietly(suite: &Suite) -> Report {
    run(suite, &mut std::io::sink())
}

#[test]
fn a_suite_that_crashes_or_is_missing_has_failed() {
    assert_eq!(run_quietly(&suite("kill -SEGV $$")).failed, 1);
    assert_eq!(run_quietly(&suite("exit 101")).failed, 1);
    let missing = Suite {
        executable: "/no/such/file".into(),
        ..suite("")
    };
    assert_eq!(run_quietly(&missing).failed, 1);
    // libtest counted it itself.
    let counted = run_quietly(&suite(
        "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'; exit 101",
    ));
    assert_eq!((counted.passed, counted.failed), (1, 2));
}

#[test]
fn a_suite_that_hangs_is_stopped_and_says_where() {
    let hanging = Suite {
        limit: Duration::from_millis(200),
        ..suite("echo 'test a ... ok'; printf 'test b ... '; exec sleep 1000")
    };
    let mut said = Vec::new();
    let report = run(&hanging, &mut said);
    assert_eq!((report.passed, report.failed), (0, 1));
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("test b ... : nothing for 0 s"), "{said}");
}

#[test]
fn an_executable_without_a_harness_is_one_test() {
    assert_eq!(run_quietly(&suite("echo fine")), Report::single("", true));
}

#[test]
fn suites_are_named_line_by_line_and_report_where_they_print() {
    let good = suite("echo 'test result: ok. 5 passed; 0 failed; 0 ignored'; printf unfinished");
    let bad = Suite {
        name: "p::other".to_owned(),
        ..suite("echo broken; exit 3")
    };
    let mut printed = Vec::new();
    let input = format!("{}\n{}\n", good.to_line(), bad.to_line());
    run_each(input.as_bytes(), &mut printed).unwrap();
    let printed = String::from_utf8(printed).unwrap();
    let of = |suite| {
        let mut found = printed.lines().filter_map(|line| report_in(line, suite));
        let (at, report) = found.next().unwrap();
        assert!(found.next().is_none(), "{printed}");
        (at, report.passed, report.failures)
    };
    assert_eq!(of(&good), (0, 5, vec![]), "{printed}");
    assert_eq!(of(&bad), (0, 0, vec!["p::other".to_owned()]), "{printed}");
    let cut = format!("unfinished{REPORT}{{\"suite\":\"p::other\",\"repo");
    assert_eq!(report_in(&cut, &bad), None);
    let line = printed
        .lines()
        .find(|line| line.starts_with(REPORT))
        .unwrap();
    let (at, _) = report_in(&format!("unfinished{line}"), &good).unwrap();
    assert_eq!(at, "unfinished".len());

    run_each("nonsense\n".as_bytes(), &mut std::io::sink()).unwrap_err();
}
