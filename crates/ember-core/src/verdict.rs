//! What came of a program, in one word.

use std::fmt;

use ember_guest::protocol::{LimitHit, Status};

use crate::output::Output;

/// What came of a program: what a person would answer who was asked how it went.
///
/// It follows from the facts in the [`Output`], which say more: the exit code, the signal, how long
/// it took and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It exited with code 0, within its limits.
    Success,
    /// It exited with this code, which is not 0.
    RuntimeError(u8),
    /// It was not run, because it could not be compiled (in time).
    CompilationError,
    /// Its time was up.
    Timeout,
    /// There was no memory left for it.
    MemoryExceeded,
    /// It wrote more than was to be kept.
    OutputLimit,
    /// It went beyond another limit: of processes, of its files.
    LimitExceeded(LimitHit),
    /// This signal ended it, which was not for a limit.
    Killed(u8),
}

impl Verdict {
    /// Its name, for programs: `success`, `runtime-error`, `compilation-error`, `timeout`,
    /// `memory-exceeded`, `output-limit`, `limit-exceeded` or `killed`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RuntimeError(_) => "runtime-error",
            Self::CompilationError => "compilation-error",
            Self::Timeout => "timeout",
            Self::MemoryExceeded => "memory-exceeded",
            Self::OutputLimit => "output-limit",
            Self::LimitExceeded(_) => "limit-exceeded",
            Self::Killed(_) => "killed",
        }
    }
}

impl fmt::Display for Verdict {
    /// For people: `runtime error (exit code 1)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().replace('-', " "))?;
        match self {
            Self::RuntimeError(code) => write!(f, " (exit code {code})"),
            Self::LimitExceeded(limit) => write!(f, " ({limit})"),
            Self::Killed(signal) => write!(f, " (signal {signal})"),
            _ => Ok(()),
        }
    }
}

impl Output {
    /// What came of it, in one word.
    pub fn verdict(&self) -> Verdict {
        let outcome = &self.outcome;
        if self.compile.as_ref().is_some_and(|it| !it.success()) {
            return Verdict::CompilationError;
        }
        match (outcome.limit, outcome.status) {
            (Some(LimitHit::WallTime | LimitHit::CpuTime), _) => Verdict::Timeout,
            (Some(LimitHit::Memory), _) => Verdict::MemoryExceeded,
            (Some(LimitHit::Output), _) => Verdict::OutputLimit,
            (Some(limit), _) => Verdict::LimitExceeded(limit),
            // Whatever it ended with: what is there of its output is not all.
            (None, _) if self.truncated => Verdict::OutputLimit,
            (None, Status::Exited(0)) => Verdict::Success,
            (None, Status::Signaled(signal)) => Verdict::Killed(signal),
            (None, status) => {
                Verdict::RuntimeError(u8::try_from(status.shell_code()).unwrap_or(u8::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests;
