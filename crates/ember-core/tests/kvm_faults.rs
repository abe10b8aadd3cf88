//! A host that runs out of something: an error that says so, nothing left, and all is well again
//! when there is enough.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process;
use std::time::Duration;

use common::{runtime, template};
use ember_core::{
    Backing, Command, Error, ErrorKind, LoadOptions, Placement, Sandbox, Template, TemplateBuilder,
};
use ember_leak::LeakGate;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// For what this process has to have enough of, wherever sandboxes are made otherwise.
fn in_process() -> TemplateBuilder {
    template("bash").placement(Placement::InProcess)
}

/// The runtime's idle threads end after ten seconds.
fn gate() -> LeakGate {
    let settle = Duration::from_secs(30);
    LeakGate::builder().settle(settle).arm().unwrap()
}

async fn says_something(sandbox: &Sandbox) {
    let output = sandbox.exec(Command::from_argv(["echo", "here"])).await;
    assert_eq!(output.unwrap().stdout, "here\n");
}

/// Runs `work` with at most `most` of `resource`.
async fn with_at_most<T>(resource: Resource, most: u64, work: impl Future<Output = T>) -> T {
    let usual = getrlimit(resource);
    let current = Some(most);
    setrlimit(resource, Rlimit { current, ..usual }).unwrap();
    let result = work.await;
    setrlimit(resource, usual).unwrap();
    result
}

/// The limit of descriptors with which a process can have so many more: a limit is one of their
/// numbers, of which some are free below those that are taken.
fn descriptors(process: &str, more: u64) -> u64 {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut taken: BTreeSet<u64> = names.map(|name| name.parse().unwrap()).collect();
    // What the directory was read by is closed again.
    taken.retain(|number| fs::read_link(format!("/proc/{process}/fd/{number}")).is_ok());
    let mut free = (0..).filter(|number| !taken.contains(number));
    free.nth(more as usize).unwrap()
}

/// The same, once what ended before has let go of its own.
async fn settled_descriptors(process: &str, more: u64) -> u64 {
    let mut limit = descriptors(process, more);
    let mut same = 0;
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = descriptors(process, more);
        same = if now == limit { same + 1 } else { 0 };
        limit = now;
    }
    limit
}

fn assert_exhausted(error: &Error, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{what}: {error:?}");
}

/// Whether a clone was refused for want of `what`. One that was made answers, and is closed.
async fn is_refused(made: Result<Sandbox, Error>, what: &str) -> bool {
    match made {
        Err(error) => {
            assert_exhausted(&error, what);
            true
        }
        Ok(clone) => {
            says_something(&clone).await;
            clone.close().await;
            false
        }
    }
}

/// Clones with one more descriptor each time, so that it fails at each of its steps, until it does
/// not; gives how often it was refused.
async fn refused_here(template: &Template) -> u64 {
    let mut more = 0;
    while more < 60 {
        let limit = settled_descriptors("self", more).await;
        let made = with_at_most(Resource::Nofile, limit, template.fork()).await;
        if !is_refused(made, &format!("{more} more descriptors")).await {
            break;
        }
        more += 1;
    }
    more
}

#[test]
fn a_clone_for_which_there_are_not_enough_descriptors_is_an_error_and_leaves_nothing() {
    ember_leak::isolated!(|| runtime().block_on(async {
        let template = in_process().build().await.unwrap();
        let first = template.fork().await.unwrap();
        says_something(&first).await;
        template.fork().await.unwrap().close().await;
        let gate = gate();

        let refused = refused_here(&template).await;
        assert!((10..60).contains(&refused), "{refused} were refused");
        gate.check().unwrap();
        says_something(&first).await;
        let another = template.fork().await.unwrap();
        says_something(&another).await;
        another.close().await;
        first.close().await;
    }));
}

/// The worker processes that are nobody's yet, or have a guest.
fn workers() -> Vec<Pid> {
    // They belong to the thread that starts them.
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let ids: Vec<String> = children.collect();
    let ids = ids.iter().flat_map(|text| text.split_whitespace());
    ids.filter_map(|id| Pid::from_raw(id.parse().unwrap()))
        .collect()
}

/// Whether a worker has no guest: then it has but one thread.
fn is_idle(worker: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", worker.as_raw_pid()));
    tasks.is_ok_and(|tasks| tasks.count() == 1)
}

#[test]
fn a_worker_that_has_not_enough_descriptors_is_an_error_to_one_caller() {
    ember_leak::isolated!(|| runtime().block_on(async {
        let template = template("bash")
            .placement(Placement::Worker)
            .build()
            .await
            .unwrap();
        let first = template.fork().await.unwrap();
        says_something(&first).await;
        template.fork().await.unwrap().close().await;
        let gate = gate();

        // Here: each step of handing a guest over fails once.
        let refused = refused_here(&template).await;
        assert!((1..60).contains(&refused), "{refused} were refused");

        // There: each step of making it.
        let mut refused = 0;
        for more in 0..60 {
            // Those that are nobody's yet come by themselves, in their own time.
            let idle = loop {
                let idle: Vec<Pid> = workers().into_iter().filter(|it| is_idle(*it)).collect();
                if idle.len() >= 2 {
                    break idle;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            for worker in idle {
                let process = worker.as_raw_pid().to_string();
                let current = Some(settled_descriptors(&process, more).await);
                let usual = getrlimit(Resource::Nofile);
                prlimit(Some(worker), Resource::Nofile, Rlimit { current, ..usual }).unwrap();
            }
            let made = template.fork().await;
            if !is_refused(made, &format!("{more} more in the worker")).await {
                break;
            }
            refused += 1;
            // The others do not hear of it.
            says_something(&first).await;
        }
        assert!(
            (5..60).contains(&refused),
            "{refused} were refused in the worker"
        );
        first.close().await;
        gate.check().unwrap();
        let another = template.fork().await.unwrap();
        says_something(&another).await;
        another.close().await;
    }));
}

/// This machine's kernel merges, for as long as there is this value.
struct Merging(Vec<(String, String)>);

impl Merging {
    /// All that it may, at once.
    fn at_once() -> Option<Self> {
        let mut before = Self(Vec::new());
        for (name, value) in [
            ("pages_to_scan", "100000"),
            ("sleep_millisecs", "10"),
            ("run", "1"),
        ] {
            let path = format!("/sys/kernel/mm/ksm/{name}");
            let was = fs::read_to_string(&path).ok()?;
            fs::write(&path, value).ok()?;
            before.0.push((path, was));
        }
        Some(before)
    }
}

impl Drop for Merging {
    fn drop(&mut self) {
        // 2: what is merged is taken apart.
        fs::write("/sys/kernel/mm/ksm/run", "2").unwrap();
        for (path, was) in &self.0 {
            fs::write(path, was.trim()).unwrap();
        }
    }
}

/// How many pages of this process, and of its workers, the kernel has merged with others of the same
/// content.
fn merged_pages() -> u64 {
    let read = |process: &str| fs::read_to_string(format!("/proc/{process}/ksm_merging_pages"));
    let own = read("self").unwrap();
    // A worker can end while it is asked.
    let workers = workers().into_iter().map(|it| it.as_raw_pid().to_string());
    let of_workers = workers.filter_map(|it| read(&it).ok().filter(|text| !text.is_empty()));
    let counts = of_workers.chain([own]);
    counts.map(|it| it.trim().parse::<u64>().unwrap()).sum()
}

#[test]
fn equal_pages_are_merged_where_that_is_allowed_and_nowhere_else() {
    ember_leak::isolated!(|| runtime().block_on(async {
        const PAGES: u64 = 2048;
        let Some(_merging) = Merging::at_once() else {
            println!("not shown: only root may have this machine's kernel merge pages");
            return;
        };
        let fill = format!(
            "yes 'the same in both' | head -c {}K > /dev/shm/fill",
            PAGES * 4
        );
        let show = Command::from_argv(["sh", "-c", "sha256sum < /dev/shm/fill"]);
        for is_allowed in [false, true] {
            let template = template("bash")
                .mergeable(is_allowed)
                .build()
                .await
                .unwrap();
            let clones = template.fork_many(2).await.unwrap();
            let mut sums = Vec::new();
            for clone in &clones {
                let filled = clone.exec(Command::from_argv(["sh", "-c", &fill])).await;
                assert!(filled.unwrap().success());
                sums.push(clone.exec(show.clone()).await.unwrap().stdout);
            }
            let mut merged = 0;
            for _ in 0..if is_allowed { 600 } else { 20 } {
                tokio::time::sleep(Duration::from_millis(100)).await;
                merged = merged.max(merged_pages());
                if merged >= PAGES {
                    break;
                }
            }
            // Every page of the one is a page of the other.
            assert_eq!(merged >= PAGES, is_allowed, "{merged} pages are merged");
            if !is_allowed {
                assert_eq!(merged, 0);
            }
            // Whoever writes to one has a page of its own again.
            let write = "printf x | dd of=/dev/shm/fill conv=notrunc bs=1 seek=5000 2>/dev/null";
            let written = clones[0]
                .exec(Command::from_argv(["sh", "-c", write]))
                .await;
            assert!(written.unwrap().success());
            let mut after = Vec::new();
            for clone in &clones {
                after.push(clone.exec(show.clone()).await.unwrap().stdout);
            }
            assert_eq!(sums[0], sums[1]);
            assert_ne!(after[0], sums[0]);
            assert_eq!(after[1], sums[1]);
            for clone in clones {
                clone.close().await;
            }
        }
    }));
}

/// The size of this process's address space in bytes.
fn address_space() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_clone_for_which_there_is_not_enough_memory_is_an_error_and_leaves_nothing() {
    ember_leak::isolated!(|| runtime().block_on(async {
        let template = in_process().build().await.unwrap();
        // The runtime's threads, and their arenas, are there.
        let clones = template.fork_many(4).await.unwrap();
        for clone in clones {
            clone.close().await;
        }
        let gate = gate();
        for more in [1_u64, 64, 100] {
            let most = address_space() + (more << 20);
            let error = with_at_most(Resource::As, most, template.fork()).await;
            assert_exhausted(&error.unwrap_err(), &format!("{more} MiB more"));
        }
        gate.check().unwrap();
        let clone = template.fork().await.unwrap();
        says_something(&clone).await;
        clone.close().await;
    }));
}

#[test]
fn a_disk_that_is_full_is_an_error_and_has_no_part_of_a_template() {
    ember_leak::isolated_namespaces!(|| runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let mount = process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(mount.unwrap().success());
        let template = template("bash").build().await.unwrap();
        let sandbox = template.fork().await.unwrap();
        let snapshot = sandbox.snapshot().await.unwrap();
        for template in [&template, &snapshot] {
            let path = directory.path().join("template");
            let error = template.save_whole(&path).await.unwrap_err();
            assert_exhausted(&error, "a disk of 2 MiB");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
        template.verify().await.unwrap();
        says_something(&sandbox).await;
        sandbox.close().await;
        // It is in the way of the directory's removal.
        let unmount = process::Command::new("umount")
            .arg(directory.path())
            .status();
        assert!(unmount.unwrap().success());
    }));
}

#[test]
fn each_backing_gives_clones_their_memory() {
    runtime().block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("template");
        let first = template("bash").build().await.unwrap();
        first.save_whole(&path).await.unwrap();
        let digest = first.digest().await.unwrap();
        for backing in [Backing::Mapped, Backing::HugePages, Backing::ON_DEMAND] {
            for placement in [Placement::InProcess, Placement::Worker] {
                let options = LoadOptions::new()
                    .backing(backing)
                    .placement(placement)
                    .mergeable(true);
                let template = Template::load_with(&path, options).await.unwrap();
                let huge = template.shared_bytes().is_multiple_of(2 << 20);
                assert_eq!(huge, backing == Backing::HugePages, "{backing}");
                let clones = template.fork_many(2).await.unwrap();
                let clone_of_clone = clones[0].fork().await.unwrap();
                for clone in clones.iter().chain([&clone_of_clone]) {
                    says_something(clone).await;
                }
                // What clones write is their own.
                template.verify().await.unwrap();
                assert_eq!(template.digest().await.unwrap(), digest, "{backing}");
                for clone in clones.into_iter().chain([clone_of_clone]) {
                    clone.close().await;
                }
            }
        }
        // The file is not needed any more, nor looked at again.
        let template = Template::load(&path).await.unwrap();
        let clone = template.fork().await.unwrap();
        fs::write(&path, "something else").unwrap();
        fs::remove_file(&path).unwrap();
        says_something(&clone).await;
        let another = template.fork().await.unwrap();
        says_something(&another).await;
        template.verify().await.unwrap();
        for clone in [clone, another] {
            clone.close().await;
        }
        let wrong = Backing::OnDemand { window_pages: 3 };
        let error = common::template("bash")
            .backing(wrong)
            .build()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
    });
}
