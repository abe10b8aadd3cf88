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
