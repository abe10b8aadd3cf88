//! `ember prepare`: download and build ahead of time what the first run would.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use ember_core::{Assets, Image};
use serde_json::json;

use crate::arguments::{Common, Prepare};
use crate::progress;
use crate::report::say;

pub(crate) fn prepare(options: &Prepare, common: &Common) -> Result<ExitCode> {
    let assets = Assets::of_user()?.with_progress(progress::to_stderr());
    let wanted = common.kernel.clone().unwrap_or_default();
    if options.renew {
        assets.renew_stock_kernel()?;
    }
    let kernel = assets.kernel(&wanted)?;
    let mut images = Vec::new();
    if let Some(recipe) = &common.pack_file {
        let image = assets.image(&Image::recipe(recipe))?;
        images.push((recipe.display().to_string(), image));
    }
    for pack in &options.packs {
        let image = if options.renew {
            assets.renew_pack(pack)?
        } else {
            assets.image(&Image::pack(pack))?
        };
        images.push((pack.clone(), image));
    }
    if let Some(path) = &options.initramfs {
        let initramfs = assets.initramfs(&kernel)?;
        let bytes: Vec<&[u8]> = initramfs.pieces().collect();
        fs::write(path, bytes.concat())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }

    if common.json {
        let images: serde_json::Map<_, _> = images
            .iter()
            .map(|(pack, image)| (pack.clone(), json!(image)))
            .collect();
        say!("{:#}", json!({ "kernel": kernel, "images": images }));
    } else {
        say!("kernel  {}", kernel.description);
        say!("        {}", kernel.image.display());
        for (pack, image) in images {
            say!("image   {pack}");
            say!("        {}", image.file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
