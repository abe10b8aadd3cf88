//! What an image says of how it is run.

use serde::{Deserialize, Serialize};

/// What an image says of how it is run. Packs and files say nothing; images of registries may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program that it is for, with arguments that it always has. Empty if there is none.
    pub entry_point: Vec<String>,
    /// The arguments that follow if nothing else is given; without an entry point, a command.
    pub arguments: Vec<String>,
    /// Variables of each command's environment.
    pub environment: Vec<(String, String)>,
    /// Who commands run as: `name`, `uid`, `name:group` or `uid:gid`. Root if nobody.
    pub user: Option<String>,
    /// Where commands start.
    pub directory: Option<String>,
}

impl ImageConfig {
    /// The program to run with these arguments, as `docker run IMAGE ARGUMENT…` has it. None if
    /// the image has no entry point and nothing is given.
    pub(crate) fn command_line(&self, given: &[String]) -> Option<Vec<String>> {
        let rest = match given {
            [] => &self.arguments,
            given => given,
        };
        let words = [self.entry_point.as_slice(), rest].concat();
        (!words.is_empty()).then_some(words)
    }
}
