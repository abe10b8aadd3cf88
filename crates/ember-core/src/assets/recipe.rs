//! A pack's recipe, read and checked.

use serde::Deserialize;

use crate::{Account, Language};

/// What a pack is made from. `crates/ember-guest/packs/` has the recipes and says what is what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) packages: Vec<String>,
    #[serde(default)]
    pub(crate) without: Vec<String>,
    #[serde(default)]
    pub(crate) drop: Vec<String>,
    pub(crate) bytecode: Option<Bytecode>,
    #[serde(default)]
    pub(crate) account: Account,
    #[serde(default, rename = "language")]
    pub(crate) languages: Vec<Language>,
    #[serde(default, rename = "directory")]
    pub(crate) directories: Vec<Directory>,
    #[serde(default, rename = "file")]
    pub(crate) files: Vec<File>,
    #[serde(default, rename = "link")]
    pub(crate) links: Vec<Link>,
}

/// Python files to compile ahead.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bytecode {
    pub(crate) python: String,
    pub(crate) directories: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Directory {
    pub(crate) path: String,
    #[serde(default = "searchable")]
    pub(crate) mode: u16,
    #[serde(default)]
    pub(crate) user: u32,
    #[serde(default)]
    pub(crate) group: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
    #[serde(default = "readable")]
    pub(crate) mode: u16,
    #[serde(default)]
    pub(crate) user: u32,
    #[serde(default)]
    pub(crate) group: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    pub(crate) path: String,
    pub(crate) target: String,
}

fn searchable() -> u16 {
    0o755
}

fn readable() -> u16 {
    0o644
}

/// Why a recipe was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecipeError {
    #[error("there is no pack {asked:?}; there are: {known}")]
    Unknown { asked: String, known: String },
    #[error("the recipe of the pack {name:?} cannot be read")]
    Syntax {
        name: &'static str,
        source: Box<toml::de::Error>,
    },
}

impl Recipe {
    /// The recipe of the pack `name`, and its text.
    pub(crate) fn find(name: &str) -> Result<(Self, &'static str), RecipeError> {
        let packs = ember_guest::packs::PACKS;
        let pack = packs.iter().find(|pack| pack.name == name).ok_or_else(|| {
            let known: Vec<&str> = packs.iter().map(|pack| pack.name).collect();
            RecipeError::Unknown {
                asked: name.to_owned(),
                known: known.join(", "),
            }
        })?;
        let recipe = toml::from_str(pack.recipe).map_err(|source| RecipeError::Syntax {
            name: pack.name,
            source: Box::new(source),
        })?;
        Ok((recipe, pack.recipe))
    }
}

#[cfg(test)]
mod tests;
