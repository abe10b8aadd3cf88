//! The languages that an image runs programs of, and in which account.

use serde::{Deserialize, Serialize};

/// How programs of a language are run, as the recipe of a pack states it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// Its name: `python`.
    pub name: String,
    /// Other names of it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What its files' names end in, without the dot.
    pub extensions: Vec<String>,
    /// The package of the image whose version is the language's. A `*` stands for any part of its
    /// name.
    #[serde(default)]
    pub package: Option<String>,
    /// That version, as far as it is the language's own: `3.11.2`. It is learned from the image's
    /// packages; a recipe does not state it.
    #[serde(default)]
    pub version: Option<String>,
    /// The interpreter, with arguments that it is always given. A file's name follows: the
    /// program's or, of a compiled language, that of what the compiler made. Empty if that runs by
    /// itself.
    #[serde(default)]
    pub interpreter: Vec<String>,
    /// The interpreter's option that is followed by the program's text itself. Without one, a
    /// program becomes a file.
    #[serde(default)]
    pub inline: Option<String>,
    /// How a program is compiled, if it is.
    #[serde(default)]
    pub compile: Option<Compiler>,
    /// The program that keeps its interpreter warm, with arguments. None if it is empty.
    #[serde(default)]
    pub runner: Vec<String>,
    /// The interpreter with the driver that runs the cells of a session, with arguments. None if it is
    /// empty.
    #[serde(default)]
    pub session: Vec<String>,
    /// A program that is run once while a template is built, so that what the language's tools read
    /// is in the memory of every clone.
    #[serde(default)]
    pub warm_up: Option<String>,
}

/// How programs of a language are compiled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compiler {
    /// The compiler and its arguments. It runs in a directory that has the program's files and
    /// nothing else. `{source}` stands for the program's file, `{sources}` for that and all others
    /// with an extension of the language, `{output}` for what is to be made.
    pub command: Vec<String>,
    /// The name of what is made.
    #[serde(default = "program")]
    pub output: String,
    /// The language of the image that it is a program in, if it is one.
    #[serde(default)]
    pub into: Option<String>,
}

fn program() -> String {
    "program".to_owned()
}

impl Language {
    /// Whether `wanted` names it: one of its names, alone or followed by as much of its version as
    /// matters to who asks. `python`, `python3` and `python-3.11` are Python 3.11.2; `python3.1` is
    /// not.
    pub fn answers_to(&self, wanted: &str) -> bool {
        self.versions_in(wanted)
            .any(|wanted| wanted.is_empty() || self.has_version(wanted))
    }

    /// Whether it may do so when its version is known.
    pub(crate) fn may_answer_to(&self, wanted: &str) -> bool {
        self.version.is_none() && self.versions_in(wanted).next().is_some()
    }

    /// What `wanted` says of a version behind one of the names.
    fn versions_in<'a>(&self, wanted: &'a str) -> impl Iterator<Item = &'a str> {
        let names = std::iter::once(&self.name).chain(&self.aliases);
        names.filter_map(move |name| {
            let rest = wanted.strip_prefix(name.as_str())?;
            let version = rest.strip_prefix(['-', '@']).unwrap_or(rest);
            // What follows a name directly has to be a number at least.
            let is_number = version.starts_with(|first: char| first.is_ascii_digit());
            (rest.is_empty() || is_number).then_some(version)
        })
    }

    /// Whether its version begins with these components.
    fn has_version(&self, wanted: &str) -> bool {
        let mut parts = self.version.iter().flat_map(|version| version.split('.'));
        wanted.split('.').all(|part| parts.next() == Some(part))
    }

    /// Whether a file of this name is a program of it.
    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        self.extensions.iter().any(|known| known == extension)
    }

    /// What people are told of it: `python 3.11.2 (.py)`.
    pub(crate) fn summary(&self) -> String {
        let version = self.version.as_ref().map(|version| format!(" {version}"));
        let extensions: Vec<String> = self.extensions.iter().map(|e| format!(".{e}")).collect();
        let (name, version) = (&self.name, version.unwrap_or_default());
        format!("{name}{version} ({})", extensions.join(", "))
    }
}

/// As much of a Debian package's version as its makers gave it: without the epoch, Debian's
/// revision and what Debian has changed (`4:12.2.0-3`, `18.20.4+dfsg-1~deb12u1`).
/// See Debian Policy, section 5.6.12.
pub(crate) fn upstream_version(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let version = version.rsplit_once('-').map_or(version, |(rest, _)| rest);
    version.split(['+', '~']).next().unwrap_or(version)
}

/// The account of an image that programs run in, so that they are not root even in their guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The user's name.
    pub user: String,
    /// Where programs start, and where their files are put.
    pub home: String,
}

impl Default for Account {
    /// Root, of whom every image has one.
    fn default() -> Self {
        Self {
            user: "root".to_owned(),
            home: "/root".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
