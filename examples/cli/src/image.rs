//! `ember image`: the images that are kept.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use ember_core::{Image, OciImage, Prune, ReadyImage, StoredImage};
use serde_json::json;

use crate::arguments::{Common, ImageAction, Pull};
use crate::guest::assets;
use crate::report::say;

/// Far longer than any password.
const PASSWORD: u64 = 64 * 1024;

pub(crate) fn image(action: &ImageAction, common: &Common) -> Result<ExitCode> {
    match action {
        ImageAction::Pull(options) => {
            let image = Image::from(described(options)?);
            told(&assets()?.renew_image(&image)?, common)
        }
        ImageAction::Build { from } => {
            let image = match from.as_slice() {
                [path] if is_path(path) => Image::named(&with_slash(path)),
                names => Image::packages(names),
            };
            told(&assets()?.renew_image(&image)?, common)
        }
        ImageAction::Ls => list(common),
        ImageAction::Prune { all, unused_for } => prune(*all, *unused_for, common),
    }
}

/// Whether something is there, also if a tag follows it. (The names of packages have no colon.)
fn is_path(text: &str) -> bool {
    let before = text.rsplit_once(':').map(|(path, _)| path);
    [Some(text), before]
        .into_iter()
        .flatten()
        .any(|it| Path::new(it).exists())
}

/// A name that is one of a path, also of one that is right here.
fn with_slash(path: &str) -> String {
    match path.starts_with(['/', '.']) {
        true => path.to_owned(),
        false => format!("./{path}"),
    }
}

fn described(options: &Pull) -> Result<OciImage> {
    let mut image = OciImage::new(&options.name);
    if let (Some(user), Some(file)) = (&options.username, &options.password_file) {
        let mut password = String::new();
        let read = match file.as_os_str() == "-" {
            true => io::stdin().take(PASSWORD).read_to_string(&mut password),
            false => fs::File::open(file)
                .and_then(|file| file.take(PASSWORD).read_to_string(&mut password)),
        };
        read.with_context(|| format!("cannot read the password from {}", file.display()))?;
        image = image.credentials(user, password.trim_end_matches(['\r', '\n']));
    }
    if options.plain_http {
        image = image.plain_http();
    }
    if let Some(platform) = &options.platform {
        image = image.platform(platform);
    }
    if let Some(path) = &options.certificate {
        let pem = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        image = image.certificate(pem);
    }
    Ok(image)
}

fn told(image: &ReadyImage, common: &Common) -> Result<ExitCode> {
    if common.json {
        say!("{:#}", json!(image));
    } else {
        say!("{}", image.file.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn list(common: &Common) -> Result<ExitCode> {
    let images = assets()?.images()?;
    if common.json {
        say!("{:#}", json!(images));
        return Ok(ExitCode::SUCCESS);
    }
    say!("{:<44} {:<10} {:>10}  FILE", "NAME", "FROM", "ON DISK");
    for image in &images {
        say!(
            "{:<44} {:<10} {:>6} MiB  {}",
            name(image),
            image.kind,
            image.bytes.div_ceil(1 << 20),
            image.file.display()
        );
        for other in image.names.iter().skip(1) {
            say!("{other}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn name(image: &StoredImage) -> &str {
    image.names.first().map_or("-", String::as_str)
}

fn prune(all: bool, unused_for: Option<Duration>, common: &Common) -> Result<ExitCode> {
    let mut which = Prune::unnamed();
    if all {
        which = which.all();
    }
    if let Some(time) = unused_for {
        which = which.unused_for(time);
    }
    let removed = assets()?.prune_images(&which)?;
    let bytes: u64 = removed.iter().map(|image| image.bytes).sum();
    if common.json {
        say!("{:#}", json!({ "removed": removed, "bytes": bytes }));
        return Ok(ExitCode::SUCCESS);
    }
    for image in &removed {
        say!("{}  {}", image.key, name(image));
    }
    say!("{} MiB are free again", bytes.div_ceil(1 << 20));
    Ok(ExitCode::SUCCESS)
}
