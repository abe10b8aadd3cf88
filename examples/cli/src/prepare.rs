//! `ember prepare`: download and build ahead of time what the first run would.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use ember_core::{Assets, Image};
use serde_json::json;

use crate::arguments::{Common, Prepare};
use crate::progress;

pub(crate) fn run(options: &Prepare, common: &Common) -> Result<ExitCode> {
    let assets = Assets::of_user()?.with_progress(progress::to_stderr());
    let wanted = common.kernel.clone().unwrap_or_default();
    if options.renew {
        assets.renew_stock_kernel()?;
    }
    let kernel = assets.kernel(&wanted)?;
    let mut images = Vec::new();
    for pack in &options.packs {
        let image = if options.renew {
            assets.renew_pack(pack)?
        } else {
            assets.image(&Image::pack(pack))?
        };
        images.push((pack, image));
    }
    if let (Some(path), Some(agent)) = (&options.initramfs, &options.agent) {
        let agent = fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
        let bytes = assets.initramfs(&kernel, &agent)?;
        fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }

    if common.json {
        let images: serde_json::Map<_, _> = images
            .iter()
            .map(|(pack, image)| ((*pack).clone(), json!(image)))
            .collect();
        println!("{:#}", json!({ "kernel": kernel, "images": images }));
    } else {
        println!("kernel  {}", kernel.description);
        println!("        {}", kernel.image.display());
        for (pack, image) in images {
            println!("image   {pack}");
            println!("        {}", image.file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
