//! Every published figure: `ember-benches [NAME…]` measures those named, or all, and prints each as
//! a line of JSON.
//!
//! The figures in the documentation come from `cargo xtask bench`, which runs this under an
//! instruction clock (one nanosecond for each instruction executed), so that they can be repeated
//! anywhere.
#![deny(unsafe_code)]

mod channel;
mod figure;
mod floor;
mod fork;
mod memory;
mod sandbox;

use std::io::Write;

use anyhow::{Result, bail};
use figure::Figure;

/// Measures one group of figures.
type Measure = fn(&tokio::runtime::Runtime) -> Result<Vec<Figure>>;

/// The names of the figures that are measured together, and what measures them.
const GROUPS: &[(&[&str], Measure)] = &[
    (&["boot.agent"], sandbox::boot),
    (&["channel.ping"], channel::ping),
    (&["exec.true"], sandbox::exec),
    (&["channel.throughput"], channel::throughput),
    (&["monitor.memory"], memory::monitor),
    (&["fork.object.cold", "fork.reply.cold"], fork::cold),
    (&["fork.reply.shell", "fork.reply.4vcpu"], fork::shell),
    (&["fork.result.python"], fork::python),
    (&["pool.acquire"], fork::pool),
    (&["livefork.pause"], fork::live),
    (&["chain.depth8"], fork::chain),
    (&["floor"], floor::floor),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted.as_slice() == [memory::CHILD] {
        return memory::be_monitored();
    }
    let known: Vec<&str> = GROUPS.iter().flat_map(|group| group.0).copied().collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(
            "there is no figure {unknown}; there are {}",
            known.join(", ")
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for (names, measure) in GROUPS {
        if wanted.is_empty() || wanted.iter().any(|name| names.contains(&name.as_str())) {
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
