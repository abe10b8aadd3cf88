//! Cloning templates.

use std::time::{Duration, Instant};

use anyhow::Result;
use ember_core::{ByteSize, Code, Command, Image, Kernel, Placement, Pool, Shell, Template};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{CONDITIONS, ms_since, read_ahead, template};

const FORKS: usize = 20;
const WARM_UP: usize = 3;
const LIVE_FORKS: usize = 4;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Times `FORKS` times what `measure` gives, after a few that do not count.
async fn sample(
    template: &Template,
    mut measure: impl AsyncFnMut(&Template) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut samples = Vec::with_capacity(FORKS);
    for round in 0..WARM_UP + FORKS {
        let sample = measure(template).await?;
        if round >= WARM_UP {
            samples.push(sample);
        }
        // The end of the last one waits on the kernel, and would run into the next one's time.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    Ok(samples)
}

/// How long a clone takes to reply for which nothing was prepared.
async fn cold_reply(template: &Template) -> Result<f64> {
    let start = Instant::now();
    let sandbox = template.fork().await?;
    let elapsed = ms_since(start);
    sandbox.close().await;
    Ok(elapsed)
}

/// `fork.object.cold` and `fork.reply.cold`: nothing was prepared.
pub(crate) fn cold(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let template = template(1)?.build().await?;
        let object = sample(&template, async |template| {
            let start = Instant::now();
            let shell = template.shell().await?;
            let elapsed = ms_since(start);
            drop(shell);
            Ok(elapsed)
        })
        .await?;
        let reply = sample(&template, cold_reply).await?;
        Ok(vec![
            Figure::of(
                "fork.object.cold",
                "object",
                "ms",
                Some(0.75),
                CONDITIONS,
                &object,
            ),
            Figure::of(
                "fork.reply.cold",
                "reply",
                "ms",
                Some(1.5),
                CONDITIONS,
                &reply,
            ),
        ])
    })
}

/// A shell that was kept ready.
async fn ready(template: &Template) -> Result<Shell> {
    while template.ready_shells() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(template.shell().await?)
}

/// `fork.reply.shell`: from a shell that is ready.
pub(crate) fn shell(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let mut figures = Vec::new();
        for (name, vcpus) in [("fork.reply.shell", 1), ("fork.reply.4vcpu", 4)] {
            let template = template(vcpus)?.shells(1).build().await?;
            let samples = sample(&template, async |template| {
                let shell = ready(template).await?;
                let start = Instant::now();
                let sandbox = shell.start(Default::default()).await?;
                let elapsed = ms_since(start);
                sandbox.close().await;
                Ok(elapsed)
            })
            .await?;
            let conditions = CONDITIONS.replace("1 vCPU", &format!("{vcpus} vCPU"));
            let goal = (vcpus == 1).then_some(0.4);
            figures.push(Figure::of(name, "reply", "ms", goal, conditions, &samples));
        }
        Ok(figures)
    })
}

/// How many others are there, each having answered.
const CROWD: usize = 100;

/// `fork.reply.crowd`: nothing was prepared, and there are `CROWD` clones, in this process or each in
/// one of its own.
pub(crate) fn crowd(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let mut figures = Vec::new();
        for (name, placement) in [
            ("fork.reply.crowd", Placement::InProcess),
            ("fork.reply.crowd.worker", Placement::Worker),
        ] {
            let template = template(1)?.placement(placement).build().await?;
            let mut crowd = Vec::with_capacity(CROWD);
            for _ in 0..CROWD {
                crowd.push(template.fork().await?);
            }
            let samples = sample(&template, cold_reply).await?;
            let conditions = format!("{CONDITIONS}; {placement}, beside {CROWD} clones");
            figures.push(Figure::of(name, "reply", "ms", None, conditions, &samples));
            for clone in crowd {
                clone.close().await;
            }
        }
        Ok(figures)
    })
}

/// `pool.acquire`: a clone that is ready, handed out.
pub(crate) fn pool(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let template = template(1)?.build().await?;
        let pool = Pool::builder(template).ready(4).max(8).build().await?;
        let mut samples = Vec::new();
        for round in 0..WARM_UP + FORKS {
            pool.filled().await?;
            let start = Instant::now();
            let sandbox = pool.acquire().await?;
            if round >= WARM_UP {
                samples.push(ms_since(start));
            }
            drop(sandbox);
        }
        pool.drain(PATIENCE).await;
        let figure = Figure::of(
            "pool.acquire",
            "reply",
            "ms",
            Some(0.1),
            CONDITIONS,
            &samples,
        );
        Ok(vec![figure])
    })
}

/// How much memory the guest has written to when it is cloned.
const DIRTY_MIB: u64 = 64;

/// `livefork.pause`: for how long a running guest stands still when it is cloned.
pub(crate) fn live(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        // Files in memory take half of it at most.
        let memory = ByteSize::mib(256);
        let template = template(1)?.memory(memory).build().await?;
        let parent = template.fork().await?;
        let fill = format!("head -c {DIRTY_MIB}M /dev/zero | tr '\\0' x > /dev/shm/dirty");
        let filled = parent.exec(Command::from_argv(["sh", "-c", &fill])).await?;
        anyhow::ensure!(filled.success(), "{filled:?}");
        let mut samples = Vec::new();
        for _ in 0..LIVE_FORKS {
            let snapshot = parent.snapshot().await?;
            samples.extend(snapshot.pause().map(|pause| pause.as_secs_f64() * 1e3));
        }
        parent.close().await;
        let conditions = CONDITIONS.replace("128 MiB", "256 MiB");
        let conditions = format!("{conditions}; {DIRTY_MIB} MiB dirty");
        let figure = Figure::of(
            "livefork.pause",
            "pause",
            "ms",
            Some(2.0),
            conditions,
            &samples,
        );
        Ok(vec![figure])
    })
}

/// `chain.depth8`: a clone of a snapshot of a clone, and so on eight times, over one of the first.
pub(crate) fn chain(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let first = template(1)?.build().await?;
        let mut last = first.clone();
        for link in 0..8 {
            let sandbox = last.fork().await?;
            let write = format!("head -c 1M /dev/zero > /dev/shm/link{link}");
            let written = sandbox
                .exec(Command::from_argv(["sh", "-c", &write]))
                .await?;
            anyhow::ensure!(written.success(), "{written:?}");
            last = sandbox.snapshot().await?;
            sandbox.close().await;
        }
        let time = async |template: &Template| {
            sample(template, async |template| {
                let start = Instant::now();
                let shell = template.shell().await?;
                let elapsed = ms_since(start);
                drop(shell);
                Ok(elapsed)
            })
            .await
        };
        let (one, eight) = (time(&first).await?, time(&last).await?);
        let ratios: Vec<f64> = sorted(&eight)
            .iter()
            .zip(sorted(&one))
            .map(|(eight, one)| eight / one)
            .collect();
        let conditions = format!("{CONDITIONS}; object, 1 MiB written at each link");
        Ok(vec![Figure::of(
            "chain.depth8",
            "object",
            "x",
            Some(1.05),
            conditions,
            &ratios,
        )])
    })
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// `fork.result.python`: from a shell that is ready to what a program printed.
pub(crate) fn python(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        // The pack itself: it knows how its interpreter is kept warm.
        let image = Image::pack("python");
        read_ahead(&image)?;
        let template = Template::builder(image)
            .kernel(Kernel::tuned())
            .memory(ByteSize::mib(128))
            .cached(false)
            .shells(1)
            .build()
            .await?;
        let mut again = Vec::new();
        let samples = sample(&template, async |template| {
            let shell = ready(template).await?;
            let start = Instant::now();
            let sandbox = shell.start(Default::default()).await?;
            let first = sandbox.run(Code::python("print(6 * 7)")).await?;
            let elapsed = ms_since(start);
            let start = Instant::now();
            let second = sandbox.run(Code::python("print(6 * 7)")).await?;
            again.push(ms_since(start));
            for out in [first, second] {
                anyhow::ensure!(out.stdout == "42\n", "{out:?}");
            }
            sandbox.close().await;
            Ok(elapsed)
        })
        .await?;
        let figure = |name, goal, what: &str, samples: &[f64]| {
            let conditions = format!("{CONDITIONS}; {what}");
            Figure::of(name, "result", "ms", goal, conditions, samples)
        };
        Ok(vec![
            figure(
                "fork.result.python",
                Some(2.5),
                "from a ready shell",
                &samples,
            ),
            figure(
                "fork.result.python.again",
                None,
                "the same once more in that clone",
                &again,
            ),
        ])
    })
}
