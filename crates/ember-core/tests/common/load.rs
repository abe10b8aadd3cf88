//! Guests whose every part is at work while they are saved: nothing is lost, nothing is corrupted.

use std::time::{Duration, Instant};

use ember_core::{Code, Command, ProcessOutput, Sandbox};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{runtime, template};

/// Ends when every part of `load.py` has got on; says what is wrong. A shell that starts nothing, for
/// the guest has enough to do, and this is asked hundreds of times.
const ALL_GET_ON: &str = r#"
parts='disk processors memory timers'
tries=0
# Nobody ever writes to it.
exec {never}<> <(:)
look() {
    for failed in failed*; do
        [ -e "$failed" ] && { read -r why < "$failed"; echo "$why"; exit 1; }
    done
    tries=$((tries + 1))
    [ $tries -gt 2400 ] && { echo "$part stands still at '$before': $(ls -la)"; exit 1; }
    read -r -t 0.05 -u $never
}
until cd /dev/shm/load; do look; done 2> /dev/null
for part in $parts; do
    until [ -e $part ]; do look; done
    # There is no newline at its end, which counts as a failure.
    read -r before < $part
    eval $part=\$before
done
for part in $parts; do
    eval before=\$$part
    while read -r now < $part; [ "$now" = "$before" ]; do look; done
done
look
exit 0
"#;

async fn gets_on(sandbox: &Sandbox, who: &str) {
    let look = Command::from_argv(["bash", "-c", ALL_GET_ON]);
    let output = sandbox.exec(look).await.unwrap();
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
/// each time, while it stands still.
pub(crate) fn snapshots_of_a_busy_guest_lose_nothing(vcpus: u8, rounds: usize) {
    runtime().block_on(async {
        let template = template("python").vcpus(vcpus).build().await.unwrap();
        let parent = template.fork().await.unwrap();
        let mut load = parent
            .start(Code::python(include_str!("load.py")))
            .await
            .unwrap();
        let lines = tokio::spawn(read_lines(load.take_stdout().unwrap()));
        gets_on(&parent, "at the beginning").await;
        let (mut saving, mut asking) = (Duration::ZERO, Duration::ZERO);
        for round in 0..rounds {
            let begun = Instant::now();
            // In turns: a clone of the guest itself, and one of a snapshot of it.
            let clone = if round % 2 == 0 {
                parent.fork().await.unwrap()
            } else {
                parent.snapshot().await.unwrap().fork().await.unwrap()
            };
            saving += begun.elapsed();
            let begun = Instant::now();
            // The clone has the lab's processor to itself for what is asked of it.
            parent.pause().await.unwrap();
            gets_on(&clone, &format!("the clone of round {round}")).await;
            clone.close().await;
            parent.resume().await.unwrap();
            asking += begun.elapsed();
            if round % 20 == 19 {
                ember_leak::progress(&format!(
                    "saved at work: {} of {rounds}, {saving:.0?} to save and clone, {asking:.0?} to ask",
                    round + 1
                ));
            }
        }
        gets_on(&parent, "at the end").await;
        parent.close().await;
        let lines = lines.await.unwrap();
        assert!(lines > rounds as u64, "only {lines} lines");
    });
}
