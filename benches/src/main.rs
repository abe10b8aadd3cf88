//! Every published figure: `ember-benches [NAME…]` measures those named, or all, and prints each as
//! a line of JSON. `ember-benches --list` says the names.
//!
//! The figures in the documentation come from `cargo xtask bench`, which runs this under an
//! instruction clock (one nanosecond for each instruction executed), so that they can be repeated
//! anywhere.
#![deny(unsafe_code)]

mod channel;
mod figure;
mod floor;
mod footprint;
mod fork;
mod languages;
mod limits;
mod memory;
mod protocol;
mod sandbox;

use std::io::Write;

use anyhow::{Result, bail};
use figure::Figure;

/// Measures one group of figures.
type Measure = fn(&tokio::runtime::Runtime) -> Result<Vec<Figure>>;

/// The names of the figures that are measured together, and what measures them. Those of
/// [`GUARDED`] are measured in a lab that keeps VMs from QEMU's faults.
const GROUPS: &[(&[&str], Measure)] = &[
    (&["boot.agent"], sandbox::boot),
    (&["channel.ping"], channel::ping),
    (&["exec.true"], sandbox::exec),
    (&["channel.throughput"], channel::throughput),
    (&["monitor.memory"], memory::monitor),
    (&["fork.object.cold", "fork.reply.cold"], fork::cold),
    (&["fork.reply.shell", "fork.reply.4vcpu"], fork::shell),
    (
        &["fork.result.python", "fork.result.python.again"],
        fork::python,
    ),
    (&["pool.acquire"], fork::pool),
    (&["livefork.pause"], fork::live),
    (&["clone.memory"], footprint::clones),
    (&["chain.depth8"], fork::chain),
    (&["floor"], floor::floor),
    (&["limits.overhead", "agent.memory"], limits::overhead),
    (
        &[
            "protocol.ready",
            "protocol.message",
            "protocol.added",
            "protocol.memory",
        ],
        protocol::measure,
    ),
];

/// The same of what is measured only when it is named: it takes its time, and languages need packs that
/// are large.
const ON_DEMAND: &[(&[&str], Measure)] = &[
    (&["fork.reply.crowd"], fork::crowd),
    (&["language.bash.cold", "language.bash.result"], |runtime| {
        languages::measure(runtime, "bash")
    }),
    (
        &["language.python.cold", "language.python.result"],
        |runtime| languages::measure(runtime, "python"),
    ),
    (&["language.ruby.cold", "language.ruby.result"], |runtime| {
        languages::measure(runtime, "ruby")
    }),
    (
        &["language.javascript.cold", "language.javascript.result"],
        |runtime| languages::measure(runtime, "javascript"),
    ),
    (
        &["language.typescript.cold", "language.typescript.result"],
        |runtime| languages::measure(runtime, "typescript"),
    ),
    (
        &["language.csharp.cold", "language.csharp.result"],
        |runtime| languages::measure(runtime, "csharp"),
    ),
    (&["language.cpp.cold", "language.cpp.result"], |runtime| {
        languages::measure(runtime, "cpp")
    }),
    (&["language.rust.cold", "language.rust.result"], |runtime| {
        languages::measure(runtime, "rust")
    }),
    (&["language.go.cold", "language.go.result"], |runtime| {
        languages::measure(runtime, "go")
    }),
];

/// Their templates run interpreters and compilers: minutes of the lab, in which QEMU is all but sure to
/// deliver an interrupt twice, and what keeps it from that is a small part of their figures.
const GUARDED: [&str; 3] = ["fork.result.", "language.", "chain."];

/// Has the names printed in place of the figures: a line for those that are measured together, after
/// whether they are measured if nobody names them, and whether the lab is to guard its VMs.
const LIST: &str = "--list";

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.as_slice() == [memory::CHILD] {
        return memory::be_monitored();
    }
    let on_demand = ON_DEMAND.iter().map(|group| (group, false));
    let groups = GROUPS.iter().map(|group| (group, true)).chain(on_demand);
    if wanted.as_slice() == [LIST] {
        let mut out = std::io::stdout().lock();
        for ((names, _), is_usual) in groups {
            let is_guarded = GUARDED.iter().any(|prefix| names[0].starts_with(prefix));
            writeln!(out, "{is_usual} {is_guarded} {}", names.join(" "))?;
        }
        return Ok(());
    }
    let known: Vec<&str> = groups
        .clone()
        .flat_map(|(group, _)| group.0)
        .copied()
        .collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(
            "there is no figure {unknown}; there are {}",
            known.join(", ")
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for ((names, measure), is_usual) in groups {
        let is_named = wanted.iter().any(|name| names.contains(&name.as_str()));
        if is_named || is_usual && wanted.is_empty() {
            eprintln!("measuring {}", names.join(", "));
            for figure in measure(&runtime)? {
                let mut out = std::io::stdout().lock();
                serde_json::to_writer(&mut out, &figure)?;
                out.write_all(b"\n")?;
                out.flush()?;
            }
        }
    }
    Ok(())
}
