//! `ember` as a program among programs: streams, statuses, signals.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn ember(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs `ember` with `input` to its end.
fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = ember(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It need not read it.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_program_is_run_and_only_its_output_is_printed() {
    // What takes long is said on standard error, and the first run may.
    assert!(ember(&["template", "build"]).status().unwrap().success());
    let output = ember(&["run", "--lang", "python", "-c", "print(6*7)"])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "42\n", "{output:?}");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_script_works_in_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("upper.py");
    let program = "import sys\n\
                   data = sys.stdin.buffer.read()\n\
                   sys.stdout.buffer.write(data[::-1])\n\
                   print(sys.argv[1:], file=sys.stderr)\n\
                   sys.exit(3)\n";
    fs::write(&script, program).unwrap();
    let input: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let script = script.to_str().unwrap();
    let output = with_input(&["run", script, "--flag", "a b"], &input);
    let reversed: Vec<u8> = input.iter().rev().copied().collect();
    assert!(output.stdout == reversed, "{} bytes", output.stdout.len());
    assert_eq!(text(&output.stderr), "['--flag', 'a b']\n");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_program_comes_from_standard_input() {
    let output = with_input(
        &["run", "--lang", "python", "-", "x"],
        b"import sys; print(sys.argv)",
    );
    assert_eq!(text(&output.stdout), "['-c', 'x']\n", "{output:?}");
}

#[test]
fn statuses_tell_how_it_ended() {
    for (arguments, status) in [
        (&["exec", "--", "sh", "-c", "exit 42"][..], 42),
        (&["exec", "--", "sh", "-c", "kill -9 $$"], 137),
        (&["exec", "--", "no-such-program"], 127),
        (&["exec", "--", "/etc/passwd"], 126),
        (&["--timeout", "1s", "exec", "--", "sleep", "100"], 124),
        (
            &[
                "run",
                "-l",
                "python",
                "-c",
                "import os; os.kill(os.getpid(), 15)",
            ],
            143,
        ),
        (&["--image", "/nowhere/at-all", "exec", "--", "true"], 125),
        (&["exec"], 2),
    ] {
        let output = ember(arguments).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
    }
}

#[test]
fn files_go_in_before_and_come_out_after() {
    let directory = tempfile::tempdir().unwrap();
    let here = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(here("in")).unwrap();
    fs::write(here("in/numbers"), "1\n2\n3\n").unwrap();
    // A program that fails leaves what it has made as well.
    let program = "import os, sys; os.mkdir('out')\n\
                   open('out/sum', 'w').write(str(sum(map(int, open('data/numbers')))))\n\
                   os.symlink('/etc/passwd', 'out/away'); sys.exit(5)";
    let output = ember(&[
        "run",
        "-l",
        "python",
        "-c",
        program,
        "--put",
        &format!("{}:data", here("in")),
        "--get",
        &format!("out:{}", here("all")),
        "--get",
        &format!("*/s?m:{}", here("found")),
        "--get",
        "nothing",
    ])
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(fs::read_to_string(here("all/sum")).unwrap(), "6");
    assert_eq!(fs::read_to_string(here("found/out/sum")).unwrap(), "6");
    assert!(fs::symlink_metadata(here("all/away")).is_err());
    let said = text(&output.stderr);
    assert!(said.contains("\"away\" was left out"), "{said}");
    assert!(said.contains("cannot look at \"nothing\""), "{said}");
    // Of one that succeeds, what is missing is an error; of one that was not there, too.
    for arguments in [
        &["run", "-l", "python", "-c", "", "--get", "nothing"][..],
        &["run", "-l", "python", "-c", "", "--put", "/no/such/file"],
    ] {
        let output = ember(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
    }
    // As root, for what is root's.
    let put = format!("{}:/etc/numbers", here("in/numbers"));
    let output = ember(&[
        "exec",
        "--put",
        &put,
        "--",
        "stat",
        "-c",
        "%u",
        "/etc/numbers",
    ])
    .output()
    .unwrap();
    assert_eq!(text(&output.stdout), "0\n", "{output:?}");
}

#[test]
fn a_guest_has_a_directory_of_this_host_as_a_volume() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a"), "from the host").unwrap();
    let volume = format!("{}:/opt/data", data.display());
    let script = "cat /opt/data/a && touch /opt/data/b";
    let arguments = [
        "exec", "--boot", "--volume", &volume, "--", "sh", "-c", script,
    ];
    let output = ember(&arguments).output().unwrap();
    assert_eq!(text(&output.stdout), "from the host", "{output:?}");
    let errors = text(&output.stderr);
    assert!(errors.contains("Read-only file system"), "{errors}");
    let wrong = volume.replace("/opt/data", "/dev");
    let output = ember(&["exec", "--volume", &wrong, "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let errors = text(&output.stderr);
    assert!(errors.contains("/dev is the guest's own"), "{errors}");
}

#[test]
fn files_come_out_of_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let here = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let copy = |from: &str, to: &str| ember(&["cp", from, to]).output().unwrap();
    fs::create_dir(here("in")).unwrap();
    for (from, to) in [
        ("python:/etc/passwd", here("file")),
        ("python:/etc/passwd", here("in")),
        ("python:/etc/pass*", here("found")),
    ] {
        let output = copy(from, &to);
        assert!(output.status.success(), "{from}: {output:?}");
    }
    let passwd = fs::read_to_string(here("file")).unwrap();
    assert!(passwd.contains("/home/user"), "{passwd}");
    assert_eq!(fs::read_to_string(here("in/passwd")).unwrap(), passwd);
    assert_eq!(
        fs::read_to_string(here("found/etc/passwd")).unwrap(),
        passwd
    );

    let output = copy("python:/no/such", &here("none"));
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(text(&output.stderr).contains("/no/such"), "{output:?}");
    // Into an image nothing is copied, and it is said how else.
    let output = copy(&here("file"), "python:/etc/passwd");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("--put"), "{output:?}");
}

#[test]
fn an_unknown_language_is_refused_with_the_list() {
    let output = ember(&["run", "--lang", "cobol", "-c", "x"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("python 3") && said.contains("rust"), "{said}");
    assert_eq!(text(&output.stdout), "");
    // The image that was named has fewer.
    let output = ember(&["run", "--image", "python", "-l", "rust", "-c", "x"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(
        said.contains("python 3") && !said.contains("(.rs)"),
        "{said}"
    );
}

#[test]
fn a_program_finds_its_pack_by_its_files_extension_and_version() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("hello.sh");
    fs::write(&script, "echo hello $1; exit 4").unwrap();
    let output = ember(&["run", script.to_str().unwrap(), "you"])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "hello you\n", "{output:?}");
    assert_eq!(output.status.code(), Some(4));

    let output = ember(&["lang", "ls", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let listed = listed.as_array().unwrap();
    let python = listed.iter().find(|it| it["language"] == "python").unwrap();
    assert_eq!(python["built"], true);
    assert_eq!(python["extensions"][0], ".py");
    let version = python["version"].as_str().unwrap();
    let minor = format!("python{}", version.rsplit_once('.').unwrap().0);
    let output = ember(&["run", "-l", &minor, "-c", "print(1)"])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "1\n", "{output:?}");
    let output = ember(&["run", "-l", "python2.7", "-c", "print 1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains(version), "{output:?}");
}

#[test]
fn json_tells_all_of_it() {
    let program = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)";
    let output = ember(&["--json", "run", "-l", "python", "-c", program])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["stdout"], "out\n");
    assert_eq!(json["stderr"], "err\n");
    assert_eq!(json["exit_code"], 5);
    assert_eq!(json["timed_out"], false);
    assert!(json["wall_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(json["stdout_base64"], serde_json::Value::Null);

    // What is no text is there as well, exactly.
    let bytes = r"printf '\377\000a'; printf 'text' >&2";
    let output = ember(&["--json", "exec", "--", "sh", "-c", bytes])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["stdout"], "\u{fffd}\0a");
    assert_eq!(json["stdout_base64"], "/wBh");
    assert_eq!(json["stderr"], "text");
    assert_eq!(json["stderr_base64"], serde_json::Value::Null);

    let output = ember(&["--json", "exec", "--", "no-such-program"])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["error"]["kind"], "NotFound");
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    let mut child = ember(&["exec", "--", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 4];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"y\ny\n");
    drop(stdout);
    // `yes` is ended by its next write, as in a pipe of processes, or sees it fail.
    assert_ne!(ends(&mut child), Some(0));
}

#[test]
fn an_interrupt_ends_everything() {
    let mut child = ember(&["exec", "--", "sh", "-c", "echo on; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 3];
    stdout.read_exact(&mut first).unwrap();
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(ends(&mut child), Some(130));
}

#[test]
fn a_shell_has_a_terminal_of_the_size_of_ours() {
    // `script` is a terminal for us, and passes the shell's status on.
    let line = format!(
        "stty rows 33 cols 111; {} shell; code=$?; stty -a | grep -o ' icanon'; exit $code",
        env!("CARGO_BIN_EXE_ember")
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    let mut until = |seen: &mut String, mark: &str| {
        while !seen.contains(mark) {
            let count = stdout.read(&mut buffer).unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&text(&buffer[..count]));
        }
    };
    until(&mut seen, "# ");
    stdin
        .write_all(b"stty size; id -un; echo $((40 + 2))-done\r")
        .unwrap();
    until(&mut seen, "42-done");
    assert!(seen.contains("33 111"), "{seen}");
    // Ctrl-C is for what runs in the shell, not for us.
    stdin.write_all(b"sleep 1000\r").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    stdin.write_all(b"\x03").unwrap();
    stdin.write_all(b"echo still-$((1 + 1))\r").unwrap();
    until(&mut seen, "still-2");
    stdin.write_all(b"exit 9\r").unwrap();
    // The terminal is as it was.
    until(&mut seen, " icanon");
    assert_eq!(ends(&mut child), Some(9), "{seen}");
}

#[test]
fn the_doctor_finds_this_host_fit() {
    let output = ember(&["doctor", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    let kvm = findings
        .iter()
        .find(|finding| finding["subject"] == "KVM")
        .unwrap();
    assert_eq!(kvm["condition"], "good", "{json:#}");
    assert_eq!(output.status.code(), Some(0), "{json:#}");
}

#[test]
fn clones_run_a_command_and_are_not_twins() {
    let script = "cat /proc/sys/kernel/random/boot_id; cat /prepared; exit $(($$ % 2 + 3))";
    let prepare = "echo once > /prepared";
    let arguments = [
        "fork",
        "--count",
        "3",
        "--shells",
        "2",
        "--prepare",
        prepare,
    ];
    let output = ember(&arguments)
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    assert!(matches!(output.status.code(), Some(3 | 4)), "{output:?}");
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{output:?}");
    let mut ids = std::collections::BTreeSet::new();
    for (index, pair) in lines.chunks(2).enumerate() {
        let prefix = format!("[{}] ", index + 1);
        ids.insert(pair[0].strip_prefix(&prefix).unwrap());
        assert_eq!(pair[1], format!("{prefix}once"));
    }
    assert_eq!(ids.len(), 3, "{stdout}");
    assert!(text(&output.stderr).contains("3 clones"), "{output:?}");

    let output = ember(&["--json", "fork", "-n", "2", "--", "echo", "x"])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let clones = json["clones"].as_array().unwrap();
    assert_eq!(clones.len(), 2, "{json:#}");
    for clone in clones {
        assert_eq!(clone["output"]["stdout"], "x\n");
        assert!(clone["fork_ms"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn templates_are_built_listed_shown_and_removed() {
    // Of its own, so that no other test uses or removes them; kernel and image are the user's.
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let of_user = ember(&["--json", "doctor"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&of_user.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    let found = findings
        .iter()
        .find(|finding| finding["subject"] == "cache");
    let found = found.unwrap()["found"].as_str().unwrap();
    let place = found.split(": ").next().unwrap();
    for kind in ["kernels", "images"] {
        std::os::unix::fs::symlink(format!("{place}/{kind}"), cache.join(kind)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let output = ember(arguments).env("EMBER_CACHE", &cache).output();
        let output = output.unwrap();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let keys = || {
        let (status, stdout, _) = run(&["--json", "template", "ls"]);
        assert_eq!(status, Some(0));
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let keys = json.as_array().unwrap().iter();
        keys.map(|template| template["key"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(keys(), [""; 0]);

    let build = ["template", "build", "--prepare", "echo once > /prepared"];
    let (status, stdout, stderr) = run(&build);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains("clones share"), "{stdout}");
    let first = keys();
    assert_eq!(first.len(), 1);
    // The same is there, another is built by the first run that needs it.
    assert_eq!(run(&build).0, Some(0));
    assert_eq!(keys(), first);
    let arguments = ["exec", "--", "sh", "-c", "test ! -e /prepared; echo $?"];
    assert_eq!(run(&arguments).1, "0\n");
    assert_eq!(keys().len(), 2);
    // A guest that is booted needs none.
    assert_eq!(
        run(&["--boot", "--vcpus", "2", "exec", "--", "nproc"]).1,
        "2\n"
    );
    assert_eq!(keys().len(), 2);

    let (status, stdout, _) = run(&["template", "show", &first[0][..10]]);
    assert_eq!(status, Some(0));
    assert!(
        stdout.contains(&first[0]) && stdout.contains("echo once"),
        "{stdout}"
    );
    let (_, stdout, _) = run(&["template", "ls"]);
    assert!(stdout.contains("256 MiB"), "{stdout}");

    let (status, _, stderr) = run(&["template", "rm", &first[0], "no-such"]);
    assert_eq!(status, Some(125), "{stderr}");
    assert_eq!(keys().len(), 2, "half of it was done");
    assert_eq!(run(&["template", "rm", &first[0]]).0, Some(0));
    assert_eq!(keys().len(), 1);
    assert_eq!(run(&["template", "rm", "--all"]).0, Some(0));
    assert_eq!(keys(), [""; 0]);
}

#[test]
fn the_benchmark_measures_this_host() {
    let output = ember(&["bench", "--samples", "1", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["host"]["findings"].is_array(), "{json:#}");
    let figures = json["figures"].as_array().unwrap();
    let names: Vec<&str> = figures
        .iter()
        .map(|figure| figure["name"].as_str().unwrap())
        .collect();
    for name in ["boot.agent", "exec.true", "fork.reply.cold", "pool.acquire"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for figure in figures {
        assert!(figure["p50"].as_f64().unwrap() > 0.0, "{figure}");
    }
}

/// Waits for `child`, which has to end soon.
fn ends(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it goes on");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_session_keeps_its_variables_in_a_pipe() {
    let cells = b"x = 6\ndef f(n):\n    return x * n\n\nprint('hi')\nf(7)\n";
    let output = with_input(&["session"], cells);
    assert_eq!(text(&output.stdout), "hi\n42\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
    let output = with_input(&["--json", "session"], b"x = 1\n1 / 0\nx\nexit(3)\n");
    let cells: Vec<serde_json::Value> = (text(&output.stdout).lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(cells.len(), 4, "{output:?}");
    assert_eq!(cells[1]["verdict"], "error");
    assert_eq!(cells[1]["error"]["name"], "ZeroDivisionError");
    assert_eq!(cells[2]["value"]["text/plain"], "1");
    assert_eq!(cells[3]["verdict"], "ended");
    assert_eq!(output.status.code(), Some(3));

    let cells = b"x=6\nfor i in 7 8; do\n  echo $((x * i))\ndone\n\ncd /etc\npwd\nexit 5\n";
    let output = with_input(&["session", "--lang", "bash"], cells);
    assert_eq!(text(&output.stdout), "42\n48\n/etc\n", "{output:?}");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn a_session_is_interrupted_by_ctrl_c() {
    let mut child = ember(&["session"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let cells = "x = 6\nwhile not print('begun') and x: exec('while 1: pass')\n\nx * 7\n";
    stdin.write_all(cells.as_bytes()).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut begun = [0; 6];
    stdout.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"begun\n");
    let pid = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(killed.success());
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "42\n");
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("KeyboardInterrupt"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
