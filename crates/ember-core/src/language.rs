//! The languages that an image runs programs of, and in which account.

use serde::{Deserialize, Serialize};

/// How programs of a language are run, as the recipe of a pack states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// Its name: `python`.
    pub name: String,
    /// What its files' names end in, without the dot.
    pub extensions: Vec<String>,
    /// The interpreter, with arguments that it is always given. A file's name follows.
    pub interpreter: Vec<String>,
    /// The interpreter's option that is followed by the program's text itself.
    pub inline: String,
    /// The program that keeps its interpreter warm, with arguments. None if it is empty.
    #[serde(default)]
    pub runner: Vec<String>,
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
