//! Languages: a first program, in a guest that is booted for it and in a clone.

use std::time::Instant;

use anyhow::{Result, ensure};
use ember_core::{Code, Image, Kernel, Sandbox, Template, Verdict};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{ms_since, read_ahead};

/// Compilers take seconds, of a clock by which a second takes a minute.
const SAMPLES: usize = 3;

/// A program that prints 42, for each language that has a figure.
fn program(language: &str) -> &'static str {
    match language {
        "python" | "ruby" => "print(6 * 7)",
        "javascript" | "typescript" => "console.log(6 * 7)",
        "csharp" => "class P { static void Main() { System.Console.Write(6 * 7); } }",
        "cpp" => "#include <iostream>\nint main() { std::cout << 6 * 7; }",
        "rust" => "fn main() { print!(\"{}\", 6 * 7); }",
        "go" => "package main\nimport \"fmt\"\nfunc main() { fmt.Print(6 * 7) }",
        _ => "echo $((6 * 7))",
    }
}

/// How long the program takes in `sandbox`, since `start`.
async fn answered(sandbox: &Sandbox, language: &str, start: Instant) -> Result<f64> {
    let output = sandbox.run(Code::new(language, program(language))).await?;
    let elapsed = ms_since(start);
    ensure!(
        output.verdict() == Verdict::Success && output.stdout.trim_ascii() == b"42",
        "{language}: {output:?}"
    );
    Ok(elapsed)
}

/// `language.NAME.cold` and `language.NAME.result`: from nothing but an image, and from a template
/// whose first program was another.
pub(crate) fn measure(runtime: &Runtime, language: &str) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let image = Image::pack(language);
        read_ahead(&image)?;
        let start = Instant::now();
        let sandbox = Sandbox::builder(image.clone())
            .kernel(Kernel::tuned())
            .boot()
            .await?;
        let cold = answered(&sandbox, language, start).await?;
        let known = sandbox.languages().iter().find(|it| it.name == language);
        let version = known.and_then(|it| it.version.clone());
        let version = version.unwrap_or_else(|| "unknown".to_owned());
        sandbox.close().await;

        let template = Template::builder(image)
            .kernel(Kernel::tuned())
            .cached(false)
            .build()
            .await?;
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let start = Instant::now();
            let sandbox = template.fork().await?;
            samples.push(answered(&sandbox, language, start).await?);
            sandbox.close().await;
        }
        let conditions = format!("{language} {version}, tuned kernel, 1 vCPU, the pack's memory");
        let figure = |kind, samples: &[f64]| {
            let name = format!("language.{language}.{kind}");
            Figure::of(name, "result", "ms", None, conditions.clone(), samples)
        };
        Ok(vec![figure("cold", &[cold]), figure("result", &samples)])
    })
}
