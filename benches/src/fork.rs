//! Cloning templates.

use std::time::Instant;

use anyhow::Result;
use ember_core::{Code, Template};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{CONDITIONS, ms_since, template};

const FORKS: usize = 40;
const WARM_UP: usize = 3;

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
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
    Ok(samples)
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
        let reply = sample(&template, async |template| {
            let start = Instant::now();
            let sandbox = template.fork().await?;
            let elapsed = ms_since(start);
            sandbox.close().await;
            Ok(elapsed)
        })
        .await?;
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

/// `fork.reply.shell`: from a shell that is ready.
pub(crate) fn shell(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let mut figures = Vec::new();
        for (name, vcpus) in [("fork.reply.shell", 1), ("fork.reply.4vcpu", 4)] {
            let template = template(vcpus)?.build().await?;
            let samples = sample(&template, async |template| {
                let shell = template.shell().await?;
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

/// `fork.result.python`: from a shell that is ready to what a program printed.
pub(crate) fn python(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let template = template(1)?
            .warm_up(Code::python("print(6 * 7)"))
            .build()
            .await?;
        let samples = sample(&template, async |template| {
            let shell = template.shell().await?;
            let start = Instant::now();
            let sandbox = shell.start(Default::default()).await?;
            let out = sandbox.run(Code::python("print(6 * 7)")).await?;
            let elapsed = ms_since(start);
            anyhow::ensure!(out.stdout == "42\n", "{out:?}");
            sandbox.close().await;
            Ok(elapsed)
        })
        .await?;
        Ok(vec![Figure::of(
            "fork.result.python",
            "result",
            "ms",
            Some(2.5),
            CONDITIONS,
            &samples,
        )])
    })
}
