//! Sessions: interpreters in a real guest whose variables stay from cell to cell.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use common::{runtime, template};
use ember_core::{
    Cell, CellEvent, CellOutput, CellVerdict, Command, ErrorKind, LimitHit, Limits, Sandbox,
    Session, SessionEnd, SessionOptions, Template,
};
use tokio::runtime::Runtime;

/// Does `test` in a clone of a template that all share.
fn shared(test: impl AsyncFnOnce(&Sandbox)) {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(runtime);
    RUNTIME.block_on(async {
        if TEMPLATE.get().is_none() {
            let built = template("python").build().await;
            let _ = TEMPLATE.set(built.unwrap());
        }
        let sandbox = TEMPLATE.get().unwrap().fork().await.unwrap();
        let start = Instant::now();
        test(&sandbox).await;
        println!("{:.1?}", start.elapsed());
        sandbox.close().await;
    });
}

async fn python(sandbox: &Sandbox) -> Session {
    sandbox.session(SessionOptions::python()).await.unwrap()
}

async fn run(session: &Session, code: &str) -> CellOutput {
    session.run(code).await.unwrap()
}

#[test]
fn cells_have_values_streams_and_errors() {
    shared(async |sandbox| {
        let session = python(sandbox).await;
        let out = run(&session, "x = 6").await;
        assert!(out.success() && out.value.is_none(), "{out:?}");
        let out = run(
            &session,
            "print('out')\nimport os, sys\nprint('err', file=sys.stderr)\nx * 7",
        )
        .await;
        assert_eq!(out.text(), Some("42"));
        assert_eq!(
            (out.stdout, out.stderr),
            (b"out\n".to_vec().into(), b"err\n".to_vec().into())
        );
        // What other processes write comes as well, in its order.
        let out = run(
            &session,
            "print(1, flush=True)\nos.system('echo 2')\nprint(3, end='')",
        )
        .await;
        assert_eq!(out.stdout, "1\n2\n3");
        // Nobody here is root.
        let out = run(&session, "os.getuid(), os.getcwd(), __name__").await;
        assert_eq!(out.text(), Some("(1000, '/home/user', '__main__')"));

        let out = run(&session, "def half(n):\n    return x / n\n\nhalf(0)").await;
        assert_eq!(out.verdict, CellVerdict::Error);
        let error = out.error.unwrap();
        assert_eq!(
            (&*error.name, &*error.message),
            ("ZeroDivisionError", "division by zero")
        );
        let frames: Vec<_> = error
            .frames
            .iter()
            .map(|it| (&*it.function, it.line, &*it.text))
            .collect();
        assert_eq!(
            frames,
            [("<module>", 4, "half(0)"), ("half", 2, "return x / n")]
        );
        assert!(
            error
                .traceback
                .starts_with("Traceback (most recent call last):\n  File \"<cell ")
        );
        let out = run(&session, "1 +").await;
        assert_eq!(out.error.unwrap().name, "SyntaxError");
        assert_eq!(run(&session, "").await.verdict, CellVerdict::Success);

        // Representations, as Jupyter has them.
        let out = run(
            &session,
            "class Picture:\n  def _repr_png_(self): return b'\\x89PNG'\n  def _repr_html_(self): return '<b>'\n\
             \x20 def _repr_json_(self): return {'a': [1]}\n\
             display(Picture(), 7)\nPicture()",
        )
        .await;
        let value = out.value.unwrap();
        assert_eq!(value.get("image/png"), Some("iVBORw=="));
        assert_eq!(value.get("text/html"), Some("<b>"));
        assert_eq!(value.get("application/json"), Some(r#"{"a": [1]}"#));
        assert!(value.text().unwrap().contains("Picture object"));
        assert_eq!(out.displays.len(), 2);
        assert_eq!(out.displays[1].text(), Some("7"));

        // The streams come as they are written.
        let code = "import time\nprint('first')\ntime.sleep(30)";
        let mut running = session.begin(code).unwrap();
        let event = running.next().await.unwrap();
        assert_eq!(event, Some(CellEvent::Stdout(b"first\n".to_vec())));
        // Who goes away interrupts what it has begun.
        drop(running);
        let begun = Instant::now();
        assert_eq!(run(&session, "x").await.text(), Some("6"));
        assert!(begun.elapsed() < Duration::from_secs(10));
        session.close().await;
    });
}

#[test]
fn what_does_not_end_is_interrupted_and_loses_nothing() {
    shared(async |sandbox| {
        let options = SessionOptions::python().patience(Duration::from_secs(1));
        let session = sandbox.session(options.name("loops")).await.unwrap();
        run(&session, "x = 1").await;
        let endless = "while True:\n    x += 1";
        let (out, ()) = tokio::join!(session.run(endless), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            session.interrupt();
        });
        let out = out.unwrap();
        assert_eq!(out.verdict, CellVerdict::Interrupted, "{out:?}");
        assert_eq!(out.error.unwrap().name, "KeyboardInterrupt");
        // Between cells it is nothing.
        session.interrupt();
        assert_eq!(run(&session, "x > 1000").await.text(), Some("True"));

        let timeout = Duration::from_millis(500);
        let out = session.run(Cell::new("import time\ntime.sleep(60)").timeout(timeout));
        let out = out.await.unwrap();
        assert_eq!(out.verdict, CellVerdict::Timeout, "{out:?}");
        // What a cell has started in the foreground is interrupted with it.
        let out = session.run(Cell::new("import os\nos.system('sleep 60')").timeout(timeout));
        assert_eq!(out.await.unwrap().verdict, CellVerdict::Timeout);
        assert_eq!(run(&session, "x > 1000").await.text(), Some("True"));

        // One that does not listen ends the session, and says so.
        let deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
        let out = session.run(Cell::new(deaf).timeout(timeout)).await.unwrap();
        assert_eq!(out.verdict, CellVerdict::Ended(SessionEnd::Deaf));
        let error = session.run("x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        let told = "the session \"loops\" has ended: a cell did not end when it was interrupted";
        assert_eq!(error.to_string(), told);
        // The sandbox goes on.
        assert!(sandbox.exec(Command::new("true")).await.unwrap().success());
    });
}

#[test]
fn a_fork_goes_on_with_the_same_variables() {
    shared(async |sandbox| {
        let session = python(sandbox).await;
        let other = sandbox
            .session(SessionOptions::python().name("other"))
            .await
            .unwrap();
        run(&session, "import random\nitems = ['both']\nrandom.seed(1)").await;
        // Each has its own interpreter.
        run(&other, "items = 'of the other'").await;

        let branch = sandbox.fork().await.unwrap();
        let error = session.in_clone(sandbox).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let mine = session.in_clone(&branch).await.unwrap();
        assert_eq!(
            run(&mine, "items.append('clone')\nitems").await.text(),
            Some("['both', 'clone']")
        );
        assert_eq!(
            run(&session, "items.append('first')\nitems").await.text(),
            Some("['both', 'first']")
        );
        let theirs = other.in_clone(&branch).await.unwrap();
        assert_eq!(run(&theirs, "items").await.text(), Some("'of the other'"));
        // But clones are not twins.
        let draw = "random.random()";
        assert_ne!(
            run(&mine, draw).await.text(),
            run(&session, draw).await.text()
        );
        // Errors, interrupts and the end are the same there.
        let timeout = Duration::from_millis(300);
        let out = mine
            .run(Cell::new("while True: pass").timeout(timeout))
            .await
            .unwrap();
        assert_eq!(out.verdict, CellVerdict::Timeout);
        assert_eq!(run(&mine, "print('x')\nlen(items)").await.text(), Some("2"));

        // A clone of the clone, made while a cell runs there: that goes on in both.
        let (out, leaf) = tokio::join!(
            mine.run("import time\ntime.sleep(1.5)\nitems.append('late')\nitems"),
            async {
                tokio::time::sleep(Duration::from_millis(700)).await;
                branch.fork().await.unwrap()
            }
        );
        let late = "['both', 'clone', 'late']";
        assert_eq!(out.unwrap().text(), Some(late));
        let in_leaf = mine.in_clone(&leaf).await.unwrap();
        assert_eq!(run(&in_leaf, "items").await.text(), Some(late));
        let out = run(&in_leaf, "import sys\nsys.exit(4)").await;
        assert_eq!(out.verdict, CellVerdict::Ended(SessionEnd::Exited(4)));
        assert_eq!(run(&mine, "items").await.text(), Some(late));
        leaf.close().await;
        branch.close().await;
    });
}

#[test]
fn the_end_is_told_once_and_clearly() {
    shared(async |sandbox| {
        let session = python(sandbox).await;
        let out = run(&session, "print('so far')\nraise SystemExit(3)").await;
        assert_eq!(out.verdict, CellVerdict::Ended(SessionEnd::Exited(3)));
        assert_eq!(out.stdout, "so far\n");
        let error = session.run("1").await.unwrap_err();
        let told = "the session \"python\" has ended: its interpreter exited with code 3";
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Closed, told)
        );
        assert_eq!(session.ended(), Some(SessionEnd::Exited(3)));

        let session = python(sandbox).await;
        let out = run(
            &session,
            "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        )
        .await;
        assert_eq!(out.verdict, CellVerdict::Ended(SessionEnd::Signaled(11)));

        let limits = Limits {
            memory: Some(48 << 20),
            ..Limits::default()
        };
        let options = SessionOptions::python().limits(limits);
        let session = sandbox.session(options).await.unwrap();
        let out = run(&session, "x = b'x' * (90 << 20)").await;
        assert_eq!(
            out.verdict,
            CellVerdict::Ended(SessionEnd::Limit(LimitHit::Memory))
        );

        // Ways in which it ends by itself, all at once.
        let short = Duration::from_millis(1500);
        let ends = async |options: SessionOptions, why: SessionEnd| {
            let session = sandbox.session(options).await.unwrap();
            for _ in 0..3 {
                tokio::time::sleep(short / 2).await;
                session.keep_alive();
            }
            assert_eq!(session.ended(), None, "{why}");
            tokio::time::sleep(2 * short).await;
            let error = session.run("1").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Closed);
            assert!(error.to_string().ends_with(&why.to_string()), "{error}");
        };
        tokio::join!(
            ends(SessionOptions::python().idle(short), SessionEnd::Idle),
            ends(
                SessionOptions::python().time_to_live(short),
                SessionEnd::TimeToLive
            ),
            ends(
                SessionOptions::python().max_age(short * 5 / 2),
                SessionEnd::MaxAge
            ),
        );

        // What an interpreter needs that is not there.
        let error = sandbox
            .session(SessionOptions::new("cobol"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(
            error.to_string().contains("sessions can be in: python 3"),
            "{error}"
        );
        let error = sandbox
            .session(SessionOptions::python().current_dir("/none"))
            .await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidRequest);
    });
}

#[test]
fn a_guest_that_dies_is_told_once() {
    shared(async |sandbox| {
        let first = python(sandbox).await;
        let idle = python(sandbox).await;
        let reset = "import ctypes; ctypes.CDLL(None).reboot(0x01234567)";
        let (out, _) = tokio::join!(first.run("import time\ntime.sleep(60)"), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            sandbox
                .exec(Command::from_argv(["/usr/bin/python3", "-c", reset]))
                .await
        });
        assert_eq!(out.unwrap_err().kind(), ErrorKind::GuestDied);
        let error = first.run("1").await.unwrap_err();
        let told = "the session \"python\" has ended: its guest ended";
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Closed, told)
        );
        assert_eq!(
            idle.run("1").await.unwrap_err().kind(),
            ErrorKind::GuestDied
        );
        assert_eq!(idle.run("1").await.unwrap_err().kind(), ErrorKind::Closed);
    });
}

#[test]
fn a_hostile_cell_is_its_own_sessions_matter() {
    shared(async |sandbox| {
        let options = SessionOptions::python()
            .output_at_most(1000)
            .data_at_most(10_000);
        let session = sandbox.session(options).await.unwrap();
        let out = run(&session, "print('x' * 5_000_000)\n'y' * 100_000").await;
        assert!(out.truncated && out.value.is_none());
        assert_eq!(out.stdout.len(), 4096);
        // Noise on the channel that the driver speaks on.
        let noise = "import os, sys\nchannel = next(int(n) for n in os.listdir('/proc/self/fd') \
                     if 'socket' in os.readlink(f'/proc/self/fd/{n}'))\n\
                     os.write(channel, b'{\"type\": 5}\\n{{{\\nnoise\\n' + os.urandom(20000) + b'\\ndone 77\\n')\n7";
        let out = run(&session, noise).await;
        assert!(out.success() && out.truncated, "{out:?}");
        assert_eq!(out.text(), Some("7"));
        assert_eq!(run(&session, "1 + 1").await.text(), Some("2"));
        // In the keeper's place: whatever comes then, the host goes on.
        let hijack = "import glob, socket, time\nmine = socket.socket(socket.AF_UNIX)\n\
                      mine.connect(glob.glob('/home/user/.ember/session-*')[0])\ntime.sleep(60)";
        let out = session
            .run(Cell::new(hijack).timeout(Duration::from_millis(500)))
            .await
            .unwrap();
        assert!(matches!(out.verdict, CellVerdict::Ended(_)), "{out:?}");
        assert_eq!(
            session.run("1").await.unwrap_err().kind(),
            ErrorKind::Closed
        );
        assert!(sandbox.exec(Command::new("true")).await.unwrap().success());
    });
}
