//! Recipes of the packs: which packages a root file system is made from, and what is changed.

/// A recipe's text. `ember-core` knows how to read and follow it.
#[derive(Debug, Clone, Copy)]
pub struct Pack {
    /// The name by which it is asked for.
    pub name: &'static str,
    /// The recipe, as TOML.
    pub recipe: &'static str,
}

/// All packs that Ember brings.
pub const PACKS: &[Pack] = &[Pack {
    name: "python",
    recipe: include_str!("../packs/python.toml"),
}];

/// A program that keeps an interpreter warm.
#[derive(Debug, Clone, Copy)]
pub struct Runner {
    /// Where recipes expect it in an image.
    pub path: &'static str,
    /// The program.
    pub text: &'static str,
}

/// All runners that Ember brings. What they and the agent say to each other is written down in the
/// Python one.
pub const RUNNERS: &[Runner] = &[Runner {
    path: "/usr/lib/ember/runners/python.py",
    text: include_str!("../packs/runners/python.py"),
}];
