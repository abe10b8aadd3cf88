use std::time::Duration;

use ember_guest::protocol::Outcome;

use super::*;
use crate::Compilation;

fn outcome(status: Status, limit: Option<LimitHit>) -> Outcome {
    Outcome {
        status,
        limit,
        wall: Duration::from_secs(1),
        user: Duration::ZERO,
        system: Duration::ZERO,
        peak_memory: 0,
        peak_processes: 0,
        output: 0,
        disk: 0,
    }
}

fn output(status: Status, limit: Option<LimitHit>) -> Output {
    Output {
        stdout: Vec::new().into(),
        stderr: Vec::new().into(),
        truncated: false,
        outcome: outcome(status, limit),
        compile: None,
        artifacts: None,
    }
}

#[test]
fn a_verdict_follows_from_the_facts() {
    let killed = Status::Signaled(9);
    for (status, limit, verdict) in [
        (Status::Exited(0), None, Verdict::Success),
        (Status::Exited(3), None, Verdict::RuntimeError(3)),
        (Status::Signaled(11), None, Verdict::Killed(11)),
        (killed, Some(LimitHit::WallTime), Verdict::Timeout),
        (killed, Some(LimitHit::CpuTime), Verdict::Timeout),
        (killed, Some(LimitHit::Memory), Verdict::MemoryExceeded),
        // It said itself that there was no memory, and ended.
        (
            Status::Exited(1),
            Some(LimitHit::Memory),
            Verdict::MemoryExceeded,
        ),
        (killed, Some(LimitHit::Output), Verdict::OutputLimit),
        (
            killed,
            Some(LimitHit::Processes),
            Verdict::LimitExceeded(LimitHit::Processes),
        ),
    ] {
        assert_eq!(output(status, limit).verdict(), verdict);
    }
    let cut = Output {
        truncated: true,
        ..output(Status::Exited(0), None)
    };
    assert_eq!(cut.verdict(), Verdict::OutputLimit);
}

#[test]
fn what_was_not_compiled_did_not_run() {
    let compile = |status, limit| {
        Some(Compilation {
            cached: false,
            messages: Vec::new().into(),
            outcome: Some(outcome(status, limit)),
        })
    };
    let late = (Status::Signaled(9), Some(LimitHit::WallTime));
    for (status, limit) in [(Status::Exited(1), None), late] {
        let output = Output {
            compile: compile(status, limit),
            ..output(status, limit)
        };
        assert_eq!(output.verdict(), Verdict::CompilationError);
    }
    let output = Output {
        compile: compile(Status::Exited(0), None),
        ..output(Status::Exited(1), None)
    };
    assert_eq!(output.verdict(), Verdict::RuntimeError(1));
    assert_eq!(output.verdict().to_string(), "runtime error (exit code 1)");
}
