//! The languages that an image runs programs of.

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
}
