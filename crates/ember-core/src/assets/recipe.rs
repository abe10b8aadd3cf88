//! A pack's recipe, read and checked, with all that it includes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize;

use crate::{Account, Language};

/// What a pack is made from: what a recipe says, and those that it includes. `docs/languages.md`
/// says what is what.
#[derive(Debug, Default)]
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) packages: Vec<String>,
    pub(crate) without: Vec<String>,
    /// What has to be there to be dropped: a recipe that names what is not there is out of date.
    pub(crate) drop: Vec<String>,
    /// The same of recipes that are included, which may speak of packages that others bring.
    pub(crate) drop_if_there: Vec<String>,
    pub(crate) bytecode: Option<Bytecode>,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) account: Account,
    pub(crate) languages: Vec<Language>,
    /// How many of the languages are its own, at the end.
    pub(crate) own_languages: usize,
    pub(crate) directories: Vec<Directory>,
    pub(crate) files: Vec<File>,
    pub(crate) links: Vec<Link>,
    /// The text of this recipe and of each that it includes, in an order of its own.
    pub(crate) texts: Vec<String>,
}

/// A recipe's file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    without: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
    bytecode: Option<Bytecode>,
    memory_mib: Option<u32>,
    account: Option<Account>,
    #[serde(default, rename = "language")]
    languages: Vec<Language>,
    #[serde(default, rename = "directory")]
    directories: Vec<Directory>,
    #[serde(default, rename = "file")]
    files: Vec<File>,
    #[serde(default, rename = "link")]
    links: Vec<Link>,
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
    #[error("the recipe {origin} cannot be read: {source}")]
    Syntax {
        origin: Origin,
        source: Box<toml::de::Error>,
    },
    #[error("{0:?} is no name of a package")]
    Package(String),
    #[error("cannot read the recipe {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the recipe {origin} is wrong: {problem}")]
    Wrong { origin: Origin, problem: String },
}

/// Where a recipe was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Brought(&'static str),
    File(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Brought(name) => write!(f, "of the pack {name:?}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Far more than any recipe has.
const LARGEST: u64 = 1 << 20;
/// The recipes that one may consist of.
const MOST: usize = 64;

/// Where recipes are found by their names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf {
    /// The user's own, each in a file `NAME.toml`.
    directory: Option<PathBuf>,
}

impl Shelf {
    /// Those that Ember brings, and those of this user: in `$XDG_CONFIG_HOME/ember/packs` or
    /// `~/.config/ember/packs`.
    pub(crate) fn of_user() -> Self {
        Self::choose(|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        // The XDG base directory specification: a relative path there is invalid and is ignored.
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        let config =
            absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|it| it.join(".config")));
        Self {
            directory: config.map(|config| config.join("ember/packs")),
        }
    }

    /// Those in `directory`, besides those that Ember brings.
    #[cfg(test)]
    pub(crate) fn at(directory: &Path) -> Self {
        Self {
            directory: Some(directory.to_owned()),
        }
    }

    /// The names of all packs, those that Ember brings first.
    pub(crate) fn names(&self) -> Vec<String> {
        let brought = ember_guest::packs::PACKS.iter();
        let mut names: Vec<String> = brought.map(|pack| pack.name.to_owned()).collect();
        let files = self.directory.as_ref().map(fs::read_dir);
        // A directory that is not there has none.
        let mut own: Vec<String> = (files.into_iter().flatten().flatten().flatten())
            .filter_map(|file| {
                let name = file.file_name().into_string().ok()?;
                Some(name.strip_suffix(".toml")?.to_owned())
            })
            .filter(|name| !names.contains(name))
            .collect();
        own.sort();
        names.append(&mut own);
        names
    }

    /// The recipe of the pack `name`.
    pub(crate) fn find(&self, name: &str) -> Result<Recipe, RecipeError> {
        let (origin, text) = self.look_up(name, None)?;
        self.follow(&origin, text)
    }

    /// A recipe of these packages, and of what every pack has.
    pub(crate) fn of_packages(names: &[String]) -> Result<Recipe, RecipeError> {
        // Debian Policy, section 5.6.7. They become arguments of a program.
        let is_package = |name: &&String| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            name.len() >= 2 && name.chars().all(plain) && !name.starts_with(['+', '-', '.'])
        };
        if let Some(wrong) = names.iter().find(|name| !is_package(name)) {
            return Err(RecipeError::Package(wrong.clone()));
        }
        let text = format!("name = \"packages\"\ninclude = [\"base\"]\npackages = {names:?}\n");
        Self::default().follow(&Origin::Brought("packages"), text)
    }

    /// The recipe in the file `path`. What it includes is looked for beside it first.
    pub(crate) fn read(&self, path: &Path) -> Result<Recipe, RecipeError> {
        let origin = Origin::File(path.to_owned());
        self.follow(&origin, read(path)?)
    }

    /// A recipe's text by its name. What Ember brings comes first: nobody's `python` is another.
    fn look_up(&self, name: &str, beside: Option<&Path>) -> Result<(Origin, String), RecipeError> {
        let packs = ember_guest::packs::PACKS;
        if let Some(pack) = packs.iter().find(|pack| pack.name == name) {
            return Ok((Origin::Brought(pack.name), pack.recipe.to_owned()));
        }
        // A name becomes part of a path.
        if is_name(name) {
            for directory in beside.into_iter().chain(self.directory.as_deref()) {
                let path = directory.join(format!("{name}.toml"));
                if path.is_file() {
                    return Ok((Origin::File(path.clone()), read(&path)?));
                }
            }
        }
        Err(RecipeError::Unknown {
            asked: name.to_owned(),
            known: self.names().join(", "),
        })
    }

    fn follow(&self, origin: &Origin, text: String) -> Result<Recipe, RecipeError> {
        let mut recipe = Recipe::default();
        let mut account = None;
        let mut seen = HashSet::new();
        self.add(origin, text, &mut recipe, &mut account, &mut seen, 0)?;
        recipe.account = account.unwrap_or_default();
        recipe.check().map_err(|problem| RecipeError::Wrong {
            origin: origin.clone(),
            problem,
        })?;
        Ok(recipe)
    }

    /// Adds what `text` includes, and then what it says itself, which counts where both say
    /// something.
    fn add(
        &self,
        origin: &Origin,
        text: String,
        recipe: &mut Recipe,
        account: &mut Option<Account>,
        seen: &mut HashSet<String>,
        depth: usize,
    ) -> Result<(), RecipeError> {
        let written: Written = toml::from_str(&text).map_err(|source| RecipeError::Syntax {
            origin: origin.clone(),
            source: Box::new(source),
        })?;
        let wrong = |problem: String| RecipeError::Wrong {
            origin: origin.clone(),
            problem,
        };
        if !is_name(&written.name) {
            return Err(wrong(format!("{:?} is no name", written.name)));
        }
        if let Some(typed) = written.languages.iter().find(|it| it.version.is_some()) {
            let problem = "a version is learned from the image: name the `package` that has it";
            return Err(wrong(format!("language {}: {problem}", typed.name)));
        }
        let beside = match origin {
            Origin::File(path) => path.parent(),
            Origin::Brought(_) => None,
        };
        seen.insert(written.name.clone());
        for name in &written.include {
            // Several may include the same: it comes once. That also ends a circle.
            if !seen.insert(name.clone()) {
                continue;
            }
            if seen.len() > MOST {
                return Err(wrong(format!("it includes more than {MOST} recipes")));
            }
            let (origin, text) = self.look_up(name, beside)?;
            self.add(&origin, text, recipe, account, seen, depth + 1)?;
        }
        recipe.take(written, text, depth == 0, account);
        Ok(())
    }
}

impl Recipe {
    fn take(
        &mut self,
        written: Written,
        text: String,
        is_own: bool,
        account: &mut Option<Account>,
    ) {
        self.texts.push(text);
        self.name = written.name;
        self.packages.extend(written.packages);
        self.without.extend(written.without);
        match is_own {
            true => self.drop.extend(written.drop),
            false => self.drop_if_there.extend(written.drop),
        }
        self.bytecode = written.bytecode.or(self.bytecode.take());
        self.memory_mib = self.memory_mib.max(written.memory_mib);
        *account = written.account.or(account.take());
        self.own_languages = written.languages.len();
        self.languages.extend(written.languages);
        self.directories.extend(written.directories);
        self.files.extend(written.files);
        self.links.extend(written.links);
    }

    /// Finds what could only be noticed when it is too late.
    fn check(&self) -> Result<(), String> {
        if self.packages.is_empty() {
            return Err("it has no packages, nor does what it includes".to_owned());
        }
        for language in &self.languages {
            let wrong = |problem: &str| Err(format!("language {}: {problem}", language.name));
            if language.extensions.is_empty() {
                return wrong("it has no extension");
            }
            if language.extensions.iter().any(|it| !is_name(it)) {
                return wrong("an extension is letters and digits, without the dot");
            }
            let Some(compile) = &language.compile else {
                if language.interpreter.is_empty() {
                    return wrong("it has neither an interpreter nor a compiler");
                }
                continue;
            };
            if compile.command.is_empty() || !is_name(&compile.output) {
                return wrong("`compile` needs a command, and a file's name as its output");
            }
            if language.inline.is_some() || !language.runner.is_empty() {
                return wrong("what is compiled is neither `inline` nor kept warm by a `runner`");
            }
            if let Some(into) = &compile.into {
                let target = self.languages.iter().find(|it| it.name == *into);
                if target.is_none_or(|it| it.compile.is_some()) {
                    return wrong("`into` is to be a language of the pack that is not compiled");
                }
                if !language.interpreter.is_empty() {
                    return wrong("it has both an interpreter and `into`, which has its own");
                }
            }
        }
        Ok(())
    }

    /// The languages that it has of itself, and not by what it includes.
    pub(crate) fn own_languages(&self) -> &[Language] {
        let included = self.languages.len().saturating_sub(self.own_languages);
        self.languages.get(included..).unwrap_or_default()
    }
}

/// Whether it can be a part of a path, and be read without surprise.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    (1..=64).contains(&text.len()) && !text.starts_with(['.', '-']) && text.chars().all(plain)
}

fn read(path: &Path) -> Result<String, RecipeError> {
    use io::Read;
    let mut text = String::new();
    let read = fs::File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text))
        .and_then(|length| match length as u64 > LARGEST {
            true => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
            false => Ok(()),
        });
    read.map_err(|source| RecipeError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests;
