//! `ember lang`: the languages that programs can be in.

use std::process::ExitCode;

use anyhow::Result;
use ember_core::{Language, Pack};
use serde_json::{Value, json};

use crate::arguments::{Common, Lang};
use crate::guest::assets;
use crate::report::say;

pub(crate) fn lang(action: &Lang, common: &Common) -> Result<ExitCode> {
    match action {
        Lang::Ls => list(common),
    }
}

fn list(common: &Common) -> Result<ExitCode> {
    let packs = assets()?.packs()?;
    if common.json {
        let all = packs.iter().flat_map(|pack| {
            let languages = pack.languages.iter();
            languages.map(|language| described(pack, language))
        });
        say!("{:#}", json!(all.collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{:<12} {:<10} {:<18} PACK",
        "LANGUAGE",
        "VERSION",
        "EXTENSIONS"
    );
    for pack in &packs {
        if pack.is_collection && !pack.languages.is_empty() {
            let names = pack.languages.iter().map(|it| it.name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            say!("{:<42} {} ({names})", "", pack.name);
            continue;
        }
        for language in &pack.languages {
            say!(
                "{:<12} {:<10} {:<18} {}",
                language.name,
                language.version.as_deref().unwrap_or("-"),
                extensions(language).join(" "),
                pack.name,
            );
        }
        if let Some(problem) = &pack.problem {
            say!("{:<42} {}: {problem}", "", pack.name);
        }
    }
    if packs.iter().any(|pack| pack.file.is_none()) {
        say!("\nThe versions of a pack are known when it has been built: `ember prepare PACK`.");
    }
    Ok(ExitCode::SUCCESS)
}

fn described(pack: &Pack, language: &Language) -> Value {
    json!({
        "language": language.name,
        "aliases": language.aliases,
        "version": language.version,
        "extensions": extensions(language),
        "compiled": language.compile.is_some(),
        "pack": pack.name,
        "built": pack.file.is_some(),
    })
}

fn extensions(language: &Language) -> Vec<String> {
    let extensions = language.extensions.iter();
    extensions
        .map(|extension| format!(".{extension}"))
        .collect()
}
