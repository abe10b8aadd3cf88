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
pub const PACKS: &[Pack] = &[
    Pack {
        name: "base",
        recipe: include_str!("../packs/base.toml"),
    },
    Pack {
        name: "python",
        recipe: include_str!("../packs/python.toml"),
    },
    Pack {
        name: "javascript",
        recipe: include_str!("../packs/javascript.toml"),
    },
    Pack {
        name: "typescript",
        recipe: include_str!("../packs/typescript.toml"),
    },
    Pack {
        name: "csharp",
        recipe: include_str!("../packs/csharp.toml"),
    },
    Pack {
        name: "cpp",
        recipe: include_str!("../packs/cpp.toml"),
    },
    Pack {
        name: "rust",
        recipe: include_str!("../packs/rust.toml"),
    },
    Pack {
        name: "go",
        recipe: include_str!("../packs/go.toml"),
    },
    Pack {
        name: "ruby",
        recipe: include_str!("../packs/ruby.toml"),
    },
    Pack {
        name: "bash",
        recipe: include_str!("../packs/bash.toml"),
    },
    Pack {
        name: "multi",
        recipe: include_str!("../packs/multi.toml"),
    },
];

/// A program that keeps an interpreter warm, or drives one in a session.
#[derive(Debug, Clone, Copy)]
pub struct Runner {
    /// Where recipes expect it in an image.
    pub path: &'static str,
    /// The program.
    pub text: &'static str,
}

/// All runners that Ember brings. What they and the agent say to each other is written down in the
/// Python one.
pub const RUNNERS: &[Runner] = &[
    Runner {
        path: "/usr/lib/ember/runners/python.py",
        text: include_str!("../packs/runners/python.py"),
    },
    Runner {
        path: "/usr/lib/ember/runners/ruby.rb",
        text: include_str!("../packs/runners/ruby.rb"),
    },
];

/// The drivers of sessions that Ember brings. What they and an interpreter's keeper say to each other
/// is written down in the Python one.
pub const DRIVERS: &[Runner] = &[
    Runner {
        path: "/usr/lib/ember/sessions/python.py",
        text: include_str!("../packs/sessions/python.py"),
    },
    Runner {
        path: "/usr/lib/ember/sessions/javascript.js",
        text: include_str!("../packs/sessions/javascript.js"),
    },
    Runner {
        path: "/usr/lib/ember/sessions/bash.sh",
        text: include_str!("../packs/sessions/bash.sh"),
    },
];
