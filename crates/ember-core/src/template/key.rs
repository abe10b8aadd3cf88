//! What names a template in the cache: everything that went into it.

use std::fmt;
use std::fs::File;

use ember_snapshot::format::FORMAT_VERSION;
use sha2::{Digest, Sha256};

use super::guest;
use crate::code::Program;
use crate::error::{Error, ErrorKind};
use crate::sandbox::{Prepared, SandboxBuilder};

/// Raise it when templates are made differently from the same things.
const VERSION: u32 = 2;

/// What a template is made from: names and values, in an order of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ingredients(Vec<(String, String)>);

/// What names a template in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(String);

impl Ingredients {
    /// All that `builder`, for which `prepared` was prepared, makes a template from, with the
    /// `programs` that warm it up, on a host with this `processor` of these `features`.
    pub(super) fn new(
        builder: &SandboxBuilder,
        prepared: &Prepared,
        programs: &[Program],
        processor: &str,
        features: &[u8],
    ) -> Result<Self, Error> {
        let mut all = Self::default();
        all.add("recipe", &VERSION);
        all.add("ember", &env!("CARGO_PKG_VERSION"));
        all.add("snapshot format", &FORMAT_VERSION);
        all.add("guest section", &guest::VERSION);
        all.add("agent", &blake3::hash(ember_guest::AGENT).to_hex());
        // A guest of another model could be refused here, and this one elsewhere. Hosts that
        // share a cache and differ each have their own.
        all.add("processor", &processor);
        all.add("features", &blake3::hash(features).to_hex());
        let (vcpus, memory) = builder.size(&prepared.image);
        all.add("vcpus", &vcpus);
        all.add("memory", &memory.as_bytes());
        all.add("command line", &prepared.command_line);
        if let Some(overlay) = &prepared.overlay {
            all.add("overlay", &overlay.bytes);
        }
        all.files(prepared)?;
        for (index, program) in programs.iter().enumerate() {
            all.step(&format!("step {}", index + 1), program)?;
        }
        Ok(all)
    }

    /// It is not recorded what clones touch first.
    pub(super) fn without_working_set(&mut self) {
        self.add("working set", &"none");
    }

    fn files(&mut self, prepared: &Prepared) -> Result<(), Error> {
        let unreadable = |error| {
            let message = "cannot examine what a template is made from";
            Error::because(ErrorKind::Unprepared, message, error)
        };
        let stamp = |path: &std::path::Path| {
            let file = File::open(path)?;
            prepared.assets.stamp(path, &file)
        };
        let kernel = &prepared.kernel;
        self.add("kernel", &stamp(&kernel.image).map_err(unreadable)?);
        for module in &kernel.modules {
            self.add("module", &stamp(module).map_err(unreadable)?);
        }
        let image = &prepared.image;
        let disk = prepared.assets.stamp(&image.file, &prepared.disk);
        self.add("image", &disk.map_err(unreadable)?);
        // Where they are says the command line, in the same order.
        for volume in &prepared.volumes {
            let disk = prepared.assets.stamp(&volume.file, &volume.disk);
            self.add("volume", &disk.map_err(unreadable)?);
        }
        // Clones are told these, and what they say is in the recipe of a pack alone.
        self.add("languages", &format!("{:?}", image.languages));
        self.add("account", &format!("{:?}", image.account));
        self.add("configuration", &format!("{:?}", image.config));
        Ok(())
    }

    /// Everything about a step: it is known to the last byte before anything is booted.
    fn step(&mut self, name: &str, program: &Program) -> Result<(), Error> {
        let command = program.command.encoded().map_err(|error| {
            let message = format!("{name} of the warm-up cannot be run");
            Error::because(ErrorKind::InvalidRequest, message, error)
        })?;
        self.add(name, &blake3::hash(&command).to_hex());
        for (path, contents) in &program.files {
            self.add("its file", &path);
            self.add("its program", &blake3::hash(contents).to_hex());
        }
        if let Some(build) = &program.build {
            // Named by all that goes into it.
            self.add("compiled", &build.place);
        }
        self.add("its input", &blake3::hash(&program.input).to_hex());
        Ok(())
    }

    fn add(&mut self, name: &str, value: &dyn fmt::Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    /// The name of what is made from exactly these.
    pub(super) fn key(&self) -> Key {
        let mut hash = Sha256::new();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            // With its length, so that nothing can pass from one to the next.
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        let hash = hash.finalize();
        Key(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Those that people may want to know of a template, but for the steps.
    pub(super) fn described(&self) -> impl Iterator<Item = (String, String)> {
        const SHOWN: [&str; 4] = ["agent", "processor", "command line", "image"];
        let shown = self
            .0
            .iter()
            .filter(|(name, _)| SHOWN.contains(&name.as_str()));
        shown.cloned()
    }
}

impl Key {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// As much of it as people are shown.
    pub(super) fn short(&self) -> &str {
        self.0.get(..SHORT).unwrap_or(&self.0)
    }
}

/// How much of a key people are shown.
const SHORT: usize = 12;

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
