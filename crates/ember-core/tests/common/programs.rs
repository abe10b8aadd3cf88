//! The corpus of programs in `tests/programs`, each of which says at its top what is to come of it.
//! `tests/programs/README.md` says how.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ember_core::{Code, Limits, Output, Sandbox};

use super::{runtime, template};

/// A program that does not say how long it may take, and a compiler, in a guest on a busy machine
/// whose processor is software.
const PATIENCE: Duration = Duration::from_secs(300);

/// A program of the corpus, and what is to come of it.
#[derive(Debug)]
struct Case {
    path: PathBuf,
    code: Code,
    verdict: String,
    stdout: Option<String>,
    on_stderr: Vec<String>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let mut case = Self {
            path: path.to_owned(),
            code: Code::file(path).compile_timeout(PATIENCE),
            verdict: String::new(),
            stdout: None,
            on_stderr: Vec::new(),
        };
        let mut limits = Limits::default();
        let mut timeout = PATIENCE;
        let mut stdin = String::new();
        for line in text.lines() {
            let Some(said) = line.strip_prefix("//: ").or(line.strip_prefix("#: ")) else {
                continue;
            };
            let (key, value) = said.split_once(':').unwrap_or((said, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            let number = || -> u64 { value.parse().unwrap() };
            match key {
                "verdict" => value.clone_into(&mut case.verdict),
                "stdout" => writeln!(case.stdout.get_or_insert_default(), "{value}").unwrap(),
                "nothing on stdout" => case.stdout = Some(String::new()),
                "on stderr" => case.on_stderr.push(value.to_owned()),
                "stdin" => writeln!(stdin, "{value}").unwrap(),
                "argument" => case.code = case.code.arg(value),
                "variable" => {
                    let (name, value) = value.split_once('=').unwrap();
                    case.code = case.code.env(name, value);
                }
                "file" => {
                    let contents = std::fs::read(path.with_file_name("files").join(value));
                    case.code = case.code.with_file(value, contents.unwrap());
                }
                "seconds" => timeout = Duration::from_secs(number()),
                "processor seconds" => limits.cpu_time = Some(Duration::from_secs(number())),
                "memory MiB" => limits.memory = Some(number() << 20),
                "processes" => limits.processes = Some(number()),
                "output KiB" => limits.output = Some(number() << 10),
                "disk MiB" => limits.disk = Some(number() << 20),
                "file KiB" => limits.file_size = Some(number() << 10),
                _ => panic!("{}: {said}", path.display()),
            }
        }
        assert!(!case.verdict.is_empty(), "{}: no verdict", path.display());
        case.code = case.code.timeout(timeout).limits(limits);
        if !stdin.is_empty() {
            case.code = case.code.stdin(stdin);
        }
        case
    }

    /// What is wrong with `output`.
    fn differs(&self, output: &Output) -> Option<String> {
        let verdict = output.verdict();
        // With the code or signal, if the program says which.
        let said = [verdict.name().to_owned(), verdict.to_string()];
        if !said.contains(&self.verdict) {
            return Some(format!("{verdict}, not {}", self.verdict));
        }
        if let Some(stdout) = &self.stdout
            && output.stdout != **stdout
        {
            return Some(format!("stdout is not {stdout:?}"));
        }
        let stderr = output.stderr.to_string_lossy();
        let missing = self.on_stderr.iter().find(|part| !stderr.contains(*part));
        missing.map(|part| format!("{part:?} is not on stderr"))
    }
}

/// The programs of one language, in order.
fn cases(language: &str) -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs");
    let entries = std::fs::read_dir(directory.join(language)).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    files.sort();
    files.iter().map(|path| Case::read(path)).collect()
}

/// Runs all programs of `language`, each in a clone of one template of `pack`. After a program that
/// was ended, the clone has to be fit for the next one.
pub(crate) fn run(pack: &str, language: &str) {
    runtime().block_on(async {
        let begun = Instant::now();
        let template = template(pack).build().await.unwrap();
        println!("{pack}: template after {:.1?}", begun.elapsed());
        let mut problems = Vec::new();
        let cases = cases(language);
        assert!(!cases.is_empty(), "there are no programs in {language}");
        for case in &cases {
            let begun = Instant::now();
            let sandbox = template.fork().await.unwrap();
            let name = case.path.file_name().unwrap().display().to_string();
            match attempt(&sandbox, case).await {
                Ok(output) => println!(
                    "{language}/{name}: {} after {:.1?}, compiled in {:?}",
                    output.verdict(),
                    begun.elapsed(),
                    output.compile.and_then(|it| it.time())
                ),
                Err(problem) => problems.push(format!("{language}/{name}: {problem}")),
            }
            sandbox.close().await;
        }
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    });
}

async fn attempt(sandbox: &Sandbox, case: &Case) -> Result<Output, String> {
    let output = match sandbox.run(case.code.clone()).await {
        Ok(output) => output,
        Err(error) => return Err(format!("{error:?}")),
    };
    if let Some(problem) = case.differs(&output) {
        // All of a flood would be no help.
        let text: String = format!("{output:?}").chars().take(2000).collect();
        return Err(format!("{problem}: {text}"));
    }
    let next = sandbox
        .exec(ember_core::Command::from_argv(["echo", "on"]))
        .await;
    match next {
        Ok(next) if next.stdout == "on\n" => Ok(output),
        next => Err(format!("then the sandbox could run nothing: {next:?}")),
    }
}
