//! `ember template`: the templates that are kept.

use std::iter;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::Result;
use ember_core::{ByteSize, Code, Command, StoredTemplate, Templates};
use serde_json::json;

use crate::arguments::{Build, Common, Remove, Template};
use crate::guest::{assets, template as described, until_signal};
use crate::report::say;

/// So much of a key tells it from others.
const KEY: usize = 12;

pub(crate) async fn template(action: &Template, common: &Common) -> Result<ExitCode> {
    match action {
        Template::Build(options) => until_signal(build(options, common)).await,
        Template::Ls => list(common),
        Template::Show { key } => show(key, common),
        Template::Rm(options) => remove(options, common),
    }
}

async fn build(options: &Build, common: &Common) -> Result<ExitCode> {
    let mut builder = described(common)?;
    for script in &options.prepare {
        builder = builder.prepare(Command::from_argv(["/bin/sh", "-c", script]));
    }
    for file in &options.warm_up {
        builder = builder.warm_up(Code::file(file));
    }
    let begun = Instant::now();
    let template = builder.build().await?;
    let seconds = begun.elapsed().as_secs_f64();
    let shared = template.shared_bytes();
    if common.json {
        say!(
            "{:#}",
            json!({ "seconds": seconds, "shared_bytes": shared })
        );
    } else {
        say!(
            "ready after {seconds:.1} s; clones share {} MiB",
            shared.div_ceil(1 << 20)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn list(common: &Common) -> Result<ExitCode> {
    let templates = Templates::of(&assets()?).list()?;
    if common.json {
        say!("{:#}", json!(templates));
        return Ok(ExitCode::SUCCESS);
    }
    if templates.is_empty() {
        say!("no templates; the first `ember run` builds one");
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{:<KEY$}  {:<16} {:>5} {:>9} {:>9}  LAST USED",
        "KEY",
        "IMAGE",
        "VCPUS",
        "MEMORY",
        "ON DISK"
    );
    for template in &templates {
        let (vcpus, memory) = match &template.manifest {
            Ok(manifest) => (
                manifest.vcpus.to_string(),
                ByteSize::bytes(manifest.memory_bytes).to_string(),
            ),
            Err(_) => ("?".to_owned(), "?".to_owned()),
        };
        say!(
            "{:<KEY$}  {:<16} {vcpus:>5} {memory:>9} {:>9}  {}",
            short(&template.key),
            template.image().unwrap_or("damaged"),
            mebibytes(template.bytes),
            ago(template.last_used)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn show(key: &str, common: &Common) -> Result<ExitCode> {
    let template = Templates::of(&assets()?).find(key)?;
    if common.json {
        say!("{:#}", json!(template));
    } else {
        describe(&template);
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(template: &StoredTemplate) {
    let line = |name: &str, value: &str| say!("{name:<12} {value}");
    line("key", &template.key);
    line("file", &template.path.display().to_string());
    line("on disk", &mebibytes(template.bytes));
    line("last used", &ago(template.last_used));
    let manifest = match &template.manifest {
        Ok(manifest) => manifest,
        Err(problem) => {
            line("damaged", problem);
            return;
        }
    };
    line("created", &ago(manifest.created));
    line("by", &manifest.created_by);
    line("vCPUs", &manifest.vcpus.to_string());
    let memory = ByteSize::bytes(manifest.memory_bytes);
    line("memory", &memory.to_string());
    // The first disk is the image.
    let disks = iter::once("image").chain(iter::repeat("volume"));
    for (name, artefact) in manifest
        .kernel
        .iter()
        .map(|kernel| ("kernel", kernel))
        .chain(
            manifest
                .images
                .iter()
                .zip(disks)
                .map(|(it, name)| (name, it)),
        )
    {
        line(name, &artefact.name);
        line("", &artefact.digest);
    }
    for (name, value) in &manifest.built_from {
        line(name, value);
    }
}

fn remove(options: &Remove, common: &Common) -> Result<ExitCode> {
    let templates = Templates::of(&assets()?);
    let mut keys = Vec::new();
    if options.all {
        keys.extend(templates.list()?.into_iter().map(|template| template.key));
    } else {
        // All of them first: a wrong one removes nothing.
        for key in &options.keys {
            keys.push(templates.find(key)?.key);
        }
    }
    for key in &keys {
        // Somebody else may have been faster.
        let _ = templates.remove(key)?;
    }
    if common.json {
        say!("{:#}", json!({ "removed": keys }));
    } else {
        for key in &keys {
            say!("{}", short(key));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn short(key: &str) -> &str {
    key.get(..KEY).unwrap_or(key)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// How long ago, in the largest unit that fits.
fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or_default().as_secs();
    for (length, unit) in [(86_400, "d"), (3600, "h"), (60, "min")] {
        if seconds >= length {
            return format!("{} {unit} ago", seconds / length);
        }
    }
    format!("{seconds} s ago")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_told_in_a_unit_that_fits() {
        let before = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        for (seconds, text) in [
            (3, "3 s ago"),
            (200, "3 min ago"),
            (7300, "2 h ago"),
            (864_010, "10 d ago"),
        ] {
            assert_eq!(ago(before(seconds)), text);
        }
        // A clock that was set back is no reason to fail.
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(ago(later), "0 s ago");
    }
}
