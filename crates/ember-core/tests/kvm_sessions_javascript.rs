//! Sessions in JavaScript and bash. What does not depend on the language is in `kvm_sessions`.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::Duration;

use common::{runtime, template};
use ember_core::{Cell, CellOutput, CellVerdict, Sandbox, Session, SessionEnd, SessionOptions};

async fn run(session: &Session, code: &str) -> CellOutput {
    session.run(code).await.unwrap()
}

#[test]
fn javascript_keeps_its_variables_and_can_be_interrupted() {
    runtime().block_on(async {
        let template = template("javascript").build();
        let sandbox: Sandbox = template.await.unwrap().fork().await.unwrap();
        let session = sandbox.session(SessionOptions::new("js")).await.unwrap();
        run(&session, "let x = 6; const items = ['both']").await;
        let out = run(&session, "console.log('out'); console.error('err'); x * 7").await;
        assert_eq!(out.text(), Some("42"), "{out:?}");
        assert_eq!((&*out.stdout, &*out.stderr), (&b"out\n"[..], &b"err\n"[..]));
        let out = run(
            &session,
            "new Promise((done) => setTimeout(() => done(5), 20))",
        )
        .await;
        assert_eq!(out.text(), Some("5"));

        let out = run(&session, "function f(y) {\n  return y.a.b\n}\nf(0)").await;
        assert_eq!(out.verdict, CellVerdict::Error);
        let error = out.error.unwrap();
        assert_eq!(error.name, "TypeError");
        let frames: Vec<_> = (error.frames.iter().map(|it| (&*it.function, it.line))).collect();
        assert_eq!(frames, [("", 4), ("f", 2)], "{error:?}");
        assert!(!error.traceback.contains("/usr/lib/ember"), "{error}");

        let timeout = Duration::from_millis(500);
        for endless in ["while (true) x += 1", "new Promise(() => {})"] {
            let out = session
                .run(Cell::new(endless).timeout(timeout))
                .await
                .unwrap();
            assert_eq!(out.verdict, CellVerdict::Timeout, "{endless}: {out:?}");
        }
        assert_eq!(run(&session, "x > 42").await.text(), Some("true"));

        let branch = sandbox.fork().await.unwrap();
        let mine = session.in_clone(&branch).await.unwrap();
        let out = run(&mine, "items.push('clone'); items.join()").await;
        assert_eq!(out.text(), Some("'both,clone'"));
        assert_eq!(run(&session, "items.join()").await.text(), Some("'both'"));
        branch.close().await;
        sandbox.close().await;
    });
}

#[test]
fn bash_keeps_its_state_and_can_be_interrupted() {
    runtime().block_on(async {
        let template = template("bash").build();
        let sandbox: Sandbox = template.await.unwrap().fork().await.unwrap();
        let session = sandbox.session(SessionOptions::new("bash")).await.unwrap();
        let define =
            "x=6; declare -A map=([a]=both); f() { echo \"f $1\"; }; export E=e; mkdir d; cd d";
        assert_eq!(run(&session, define).await.verdict, CellVerdict::Success);
        let out = run(
            &session,
            "f $((x * 7))\necho ${map[a]} $(sh -c 'echo $E') >&2; pwd; cat",
        )
        .await;
        assert_eq!(
            (&*out.stdout, &*out.stderr),
            (&b"f 42\n/home/user/d\n"[..], &b"both e\n"[..]),
            "{out:?}"
        );

        // What it ended with is an error with that name, and `$?` for the next.
        let out = run(&session, "(exit 7)").await;
        assert_eq!(out.verdict, CellVerdict::Error);
        let error = out.error.unwrap();
        assert_eq!((&*error.name, &*error.message), ("ExitStatus", "7"));
        assert_eq!(run(&session, "echo $?").await.stdout, "7\n");
        for (broken, said) in [
            ("echo 'open", "unexpected EOF"),
            ("set -u; echo $nothing; echo on", "unbound variable"),
            ("set +u; echo ${nothing:?is not set}; echo on", "is not set"),
            ("no-such-command", "command not found"),
        ] {
            let out = run(&session, broken).await;
            assert_eq!(out.verdict, CellVerdict::Error, "{broken}: {out:?}");
            assert_eq!(out.stdout, "", "{broken}");
            assert!(out.stderr.to_string_lossy().contains(said), "{out:?}");
        }
        // Neither what has bytes that bash cannot have, nor what is large, breaks what comes next.
        assert_eq!(
            run(&session, "echo a\0b").await.error.unwrap().name,
            "ValueError"
        );
        let large = format!("x={}; echo ${{#x}}; x=6", "\u{e9}".repeat(300_000));
        assert_eq!(run(&session, &large).await.stdout, "600000\n");

        let timeout = Duration::from_millis(500);
        for endless in [
            "while :; do x=$((x + 1)); done",
            "g() { while :; do sleep 60; done; }; g; echo on",
            "sleep 60 | cat; echo on",
        ] {
            let out = session
                .run(Cell::new(endless).timeout(timeout))
                .await
                .unwrap();
            assert_eq!(out.verdict, CellVerdict::Timeout, "{endless}: {out:?}");
            assert_eq!(out.error.unwrap().message, "130", "{endless}");
            assert_eq!(out.stdout, "", "{endless}");
        }
        assert_eq!(
            run(&session, "((x > 1000))").await.verdict,
            CellVerdict::Success
        );

        let branch = sandbox.fork().await.unwrap();
        let mine = session.in_clone(&branch).await.unwrap();
        let out = run(
            &mine,
            "map[a]=clone; echo ${map[a]}; pwd; echo $RANDOM$RANDOM",
        )
        .await;
        let here = run(&session, "echo ${map[a]}; pwd; echo $RANDOM$RANDOM").await;
        let lines = |out: &CellOutput| -> Vec<String> {
            (out.stdout.to_string_lossy().lines())
                .map(str::to_owned)
                .collect()
        };
        let (there, here) = (lines(&out), lines(&here));
        assert_eq!(there[..2], ["clone", "/home/user/d"]);
        assert_eq!(here[..2], ["both", "/home/user/d"]);
        assert_ne!(there[2], here[2]);
        let out = run(&mine, "echo bye; exit 4").await;
        assert_eq!(out.verdict, CellVerdict::Ended(SessionEnd::Exited(4)));
        assert_eq!(out.stdout, "bye\n");
        branch.close().await;
        sandbox.close().await;
    });
}
