//! The corpus of programs: the languages whose compilers make machine code, and take longest.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use common::programs::run;
use common::runtime;
use ember_core::{Code, Command, ErrorKind, Image, Kernel, Template, Verdict};

#[test]
fn c() {
    run("cpp", "c");
}

#[test]
fn cpp() {
    run("cpp", "cpp");
}

#[test]
fn rust() {
    run("rust", "rust");
}

#[test]
fn go() {
    run("go", "go");
}

#[test]
fn what_was_compiled_is_not_compiled_again() {
    runtime().block_on(async {
        let template = Template::builder(Image::pack("cpp"))
            .kernel(Kernel::tuned())
            .build()
            .await
            .unwrap();
        let sandbox = template.fork().await.unwrap();
        let text = "#include \"n.h\"\n#include <cstdio>\n\
                    int main(int n, char **v) { std::printf(\"%d %s\\n\", N, n > 1 ? v[1] : \"\"); }";
        let code = |header: &str| Code::new("cpp", text).with_file("n.h", header);

        let first = sandbox.run(code("#define N 1").arg("a")).await.unwrap();
        assert_eq!(first.stdout, "1 a\n", "{first:?}");
        let compile = first.compile.unwrap();
        assert!(!compile.cached && compile.time().is_some());
        // What it is given is no part of it, and a header is.
        let again = sandbox.run(code("#define N 1").arg("b")).await.unwrap();
        assert_eq!(again.stdout, "1 b\n");
        let compile = again.compile.unwrap();
        assert!(compile.cached && compile.time().is_none());
        let other = sandbox.run(code("#define N 2")).await.unwrap();
        assert_eq!(other.stdout, "2 \n");
        assert!(!other.compile.unwrap().cached);

        // A clone has it too.
        let clone = sandbox.fork().await.unwrap();
        let there = clone.run(code("#define N 1")).await.unwrap();
        assert_eq!(there.stdout, "1 \n");
        assert!(there.compile.unwrap().cached);
        clone.close().await;

        // Nothing that a program can do to it keeps it from being made anew.
        let remove = Command::from_argv(["rm", "-rf", "/home/user/.ember"]);
        assert!(sandbox.exec(remove).await.unwrap().success());
        let anew = sandbox.run(code("#define N 1")).await.unwrap();
        assert_eq!(anew.stdout, "1 \n", "{anew:?}");
        assert!(!anew.compile.unwrap().cached);

        // What cannot be compiled is an outcome of running it, and cannot be started.
        let wrong = Code::new("cpp", "int main() { return x; }");
        let output = sandbox.run(wrong.clone()).await.unwrap();
        assert_eq!(output.verdict(), Verdict::CompilationError);
        assert!(output.stderr.to_string_lossy().contains("main.cpp:1:21"), "{output:?}");
        let error = sandbox.start(wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CompilationFailed);
        let left = sandbox
            .exec(Command::from_argv(["ls", "/home/user/.ember"]))
            .await
            .unwrap();
        let left = left.stdout.to_string_lossy().into_owned();
        assert!(!left.contains('.'), "what was not made is still there: {left}");
        sandbox.close().await;
    });
}
