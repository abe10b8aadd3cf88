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
fn results_cross_a_file_and_what_is_missing_has_failed() {
    let directory =
        crate::dirs::Scratch::below(&std::env::temp_dir().join("ember-suites")).unwrap();
    let (list, results) = (
        directory.path().join("list"),
        directory.path().join("results"),
    );
    let good = suite("echo 'test result: ok. 5 passed; 0 failed; 0 ignored'");
    let silent = Suite {
        name: "p::other".to_owned(),
        ..good.clone()
    };
    write_list(std::slice::from_ref(&good), &list).unwrap();
    run_list(&list, &results, &mut std::io::sink()).unwrap();
    let report = read_results(&[good, silent], &results);
    assert_eq!((report.passed, report.failed), (5, 1));
    assert_eq!(report.failures, ["p::other (it did not report)"]);
}
