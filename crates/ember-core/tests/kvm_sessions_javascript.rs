//! Sessions in JavaScript. What does not depend on the language is in `kvm_sessions`.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::Duration;

use common::runtime;
use ember_core::{
    Cell, CellOutput, CellVerdict, Image, Sandbox, Session, SessionOptions, Template,
};

async fn run(session: &Session, code: &str) -> CellOutput {
    session.run(code).await.unwrap()
}

#[test]
fn javascript_keeps_its_variables_and_can_be_interrupted() {
    runtime().block_on(async {
        let template = Template::builder(Image::pack("javascript")).build();
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
