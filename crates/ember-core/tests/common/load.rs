//! Guests whose every part is at work while they are saved: nothing is lost, nothing is corrupted.

use ember_core::{ByteSize, Code, Image, Kernel, ProcessOutput, Sandbox, Template};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::runtime;

/// Ends when every part of `load.py` has got on; says what is wrong.
const ALL_GET_ON: &str = "
import glob, os, sys, time
state, deadline = '/dev/shm/load', time.monotonic() + 60
parts = ['disk', 'processors', 'memory', 'timers']
def counts():
    return {part: open(f'{state}/{part}').read() for part in parts}
def look():
    for failed in glob.glob(f'{state}/failed*'):
        sys.exit(open(failed).read())
    if time.monotonic() > deadline:
        sys.exit(f'something stands still: {os.listdir(state)}, {before}, {counts()}')
    time.sleep(0.02)
before = None
while not all(os.path.exists(f'{state}/{part}') for part in parts):
    look()
before = counts()
while any(before[part] == count for part, count in counts().items()):
    look()
look()
";

async fn gets_on(sandbox: &Sandbox, who: &str) {
    let output = sandbox.run(Code::python(ALL_GET_ON)).await.unwrap();
    assert!(output.success(), "{who}: {output:?}");
}

/// Reads the numbered lines until the guest's end; each must be the one after the last, whole. Gives
/// how many there were.
async fn read_lines(output: ProcessOutput) -> u64 {
    let mut lines = BufReader::new(output).lines();
    let mut number = 0;
    while let Ok(Some(line)) = lines.next_line().await {
        number += 1;
        let (counted, digest) = line.split_once(' ').unwrap_or((&line, ""));
        assert_eq!(counted, number.to_string(), "a line was lost or came twice");
        assert_eq!(digest.len(), 64, "line {number} is not whole: {line}");
    }
    number
}

/// Saves a guest of `vcpus` processors `rounds` times while it works, and has a clone of it go on
/// each time.
pub(crate) fn snapshots_of_a_busy_guest_lose_nothing(vcpus: u8, rounds: usize) {
    runtime().block_on(async {
        let template = Template::builder(Image::pack("python"))
            .kernel(Kernel::tuned())
            .memory(ByteSize::mib(256))
            .vcpus(vcpus)
            .build()
            .await
            .unwrap();
        let parent = template.fork().await.unwrap();
        let mut load = parent
            .start(Code::python(include_str!("load.py")))
            .await
            .unwrap();
        let lines = tokio::spawn(read_lines(load.take_stdout().unwrap()));
        gets_on(&parent, "at the beginning").await;
        for round in 0..rounds {
            // In turns: a clone of the guest itself, and one of a snapshot of it.
            let clone = if round % 2 == 0 {
                parent.fork().await.unwrap()
            } else {
                parent.snapshot().await.unwrap().fork().await.unwrap()
            };
            gets_on(&clone, &format!("the clone of round {round}")).await;
            clone.close().await;
            if round % 20 == 19 {
                ember_leak::progress(&format!("saved at work: {} of {rounds}", round + 1));
            }
        }
        gets_on(&parent, "at the end").await;
        parent.close().await;
        let lines = lines.await.unwrap();
        assert!(lines > rounds as u64, "only {lines} lines");
    });
}
