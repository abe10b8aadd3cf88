//! Running code, and what came of it.

use std::time::{Duration, Instant};

use ember_core::{Code, Output, PooledSandbox, Sandbox, Status, Verdict};

use crate::app::App;
use crate::error::ApiError;

/// How long a compiler may take, if programs may take that long.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(120);

/// What a client wants run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) language: String,
    pub(crate) code: String,
    pub(crate) stdin: String,
    pub(crate) timeout: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) end: End,
    /// How long it ran, and was compiled, by the guest's clock.
    pub(crate) duration: Duration,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Exited(u8),
    Signaled(u8),
    /// Its time was up.
    TimedOut,
    /// It went beyond another limit: this one, for people.
    Exceeded(String),
}

impl App {
    /// Runs a program in a sandbox.
    pub(crate) async fn execute(&self, sandbox: &Sandbox, job: Job) -> Result<Done, ApiError> {
        let Job {
            language,
            code,
            stdin,
            timeout,
        } = job;
        let limit = timeout.min(self.options.exec_timeout);
        let mut code = Code::new(&language, code)
            .timeout(limit)
            .compile_timeout(COMPILE_TIMEOUT.min(self.options.exec_timeout));
        if !stdin.is_empty() {
            code = code.stdin(stdin);
        }
        match sandbox.run(code).await {
            Ok(output) => {
                let done = Done::of(&output);
                let verdict = output.verdict().name();
                self.metrics.executed(&language, verdict, done.duration);
                Ok(done)
            }
            Err(error) => {
                self.metrics
                    .executed(&language, "failed", Duration::default());
                Err(error.into())
            }
        }
    }

    /// Has a sandbox that nobody needs any more end, without a wait; looks before how much of its
    /// memory it has made its own.
    pub(crate) fn part_with(&self, pack: &str, sandbox: PooledSandbox) {
        self.metrics.look_at(pack, sandbox);
    }

    /// A sandbox of a language, and how long it took to get it.
    pub(crate) async fn acquire(
        &self,
        pack: &crate::packs::Pack,
    ) -> Result<(PooledSandbox, Duration), ApiError> {
        if self.is_ending() {
            return Err(ApiError::unavailable("the server is ending"));
        }
        let begun = Instant::now();
        let sandbox = pack.acquire(&self.options).await?;
        let took = begun.elapsed();
        self.metrics.acquired(&pack.name, took);
        Ok((sandbox, took))
    }
}

impl Done {
    fn of(output: &Output) -> Self {
        let compiled = output.compile.as_ref().filter(|it| it.success());
        let compiling = compiled.and_then(|it| it.time()).unwrap_or_default();
        Self {
            stdout: output.stdout.to_string_lossy().into_owned(),
            stderr: output.stderr.to_string_lossy().into_owned(),
            end: End::of(output),
            duration: output.outcome.wall.saturating_add(compiling),
        }
    }
}

impl End {
    fn of(output: &Output) -> Self {
        let status = output.outcome.status;
        match (output.verdict(), status) {
            (Verdict::Timeout, _) => Self::TimedOut,
            // The compiler's own status; it may have been ended as well.
            (Verdict::CompilationError, _) if output.outcome.limit.is_some() => {
                Self::Exceeded("the compiler was ended at a limit".to_owned())
            }
            (
                verdict @ (Verdict::MemoryExceeded
                | Verdict::OutputLimit
                | Verdict::LimitExceeded(_)),
                _,
            ) => Self::Exceeded(verdict.to_string()),
            (_, Status::Signaled(signal)) => Self::Signaled(signal),
            (_, status) => Self::Exited(u8::try_from(status.shell_code()).unwrap_or(u8::MAX)),
        }
    }
}
