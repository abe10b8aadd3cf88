//! Builds a pack's root file system from its recipe.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ember_guest::packs::{DRIVERS, RUNNERS, Runner};

use super::AssetError;
use super::apt::{self, Package};
use super::recipe::{Bytecode, Recipe};
use super::squashfs;
use super::tree::{Entry, Node};
use crate::progress::Progress;

/// Part of every pack's key: a change to how packs are built makes new ones.
pub(crate) const FORMAT: u32 = 2;

/// What is unpacked through a link, since Debian has merged these into `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Why a step of a build failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the recipe names {0}, and the packages do not have it")]
    Missing(String),
    #[error("compiling the Python files failed with {status}:\n{said}")]
    Bytecode {
        status: std::process::ExitStatus,
        said: String,
    },
    #[error("indexing the shared libraries failed with {status}:\n{said}")]
    LibraryIndex {
        status: std::process::ExitStatus,
        said: String,
    },
}

/// Builds `recipe` from `packages` as the image `image`, with `scratch` (an empty directory, which
/// is removed) to work in.
pub(crate) fn build(
    recipe: &Recipe,
    packages: &[Package],
    scratch: &Path,
    image: &Path,
    progress: &Progress,
) -> Result<(), AssetError> {
    let wanted: Vec<&Package> = packages
        .iter()
        .filter(|package| {
            let name = &package.name;
            // What one recipe leaves out, another may need and say so.
            !recipe.without.contains(name) || recipe.packages.contains(name)
        })
        .collect();
    progress.step(&format!("unpack {} packages", wanted.len()), || {
        lay_out(scratch)?;
        for package in wanted {
            apt::unpack(&package.file, scratch)?;
        }
        Ok::<_, AssetError>(())
    })?;
    progress.step("index the shared libraries", || index_libraries(scratch))?;
    if let Some(bytecode) = &recipe.bytecode {
        progress.step("compile the Python files", || compile(bytecode, scratch))?;
    }
    progress.step("write the image", || {
        let mut root = Entry::read(scratch)?;
        adjust(recipe, &mut root)?;
        squashfs::write(&root, image)?;
        Ok::<_, AssetError>(())
    })?;
    fs::remove_dir_all(scratch).map_err(io_error("remove", scratch))?;
    Ok(())
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PackError + 'a {
    move |source| PackError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn lay_out(root: &Path) -> Result<(), PackError> {
    for name in MERGED {
        let real = root.join("usr").join(name);
        fs::create_dir_all(&real).map_err(io_error("create", &real))?;
        let link = root.join(name);
        symlink(Path::new("usr").join(name), &link).map_err(io_error("create", &link))?;
    }
    Ok(())
}

/// Writes `/etc/ld.so.cache`. glibc's ldconfig maps paths into the root itself: it needs neither
/// privilege nor a chroot.
fn index_libraries(root: &Path) -> Result<(), PackError> {
    let tool = Path::new("/sbin/ldconfig");
    let output = Command::new(tool)
        // Links are the packages' business (-X); the host's own cache of hashes is not read (-i).
        .args(["-X", "-i", "-r"])
        .arg(root)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(io_error("run", tool))?;
    if !output.status.success() {
        return Err(PackError::LibraryIndex {
            status: output.status,
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(())
}

/// Compiles with the pack's own Python, run by the pack's own dynamic linker, so that the host
/// needs none and bytecode and interpreter always match.
fn compile(bytecode: &Bytecode, root: &Path) -> Result<(), PackError> {
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    let linker = inside("/lib64/ld-linux-x86-64.so.2");
    let libraries = std::env::join_paths([
        inside("/lib/x86_64-linux-gnu"),
        inside("/usr/lib/x86_64-linux-gnu"),
    ])
    .map_err(|error| io_error("use", root)(io::Error::other(error)))?;

    let mut directories = Vec::new();
    for pattern in &bytecode.directories {
        let found = matching_directories(root, pattern)?;
        if found.is_empty() {
            return Err(PackError::Missing(pattern.clone()));
        }
        directories.extend(found);
    }

    let output = Command::new(&linker)
        .arg("--library-path")
        .arg(&libraries)
        .arg(inside(&bytecode.python))
        // Without the site's additions, without a user's, without writing anything else.
        .args(["-S", "-s", "-B", "-m", "compileall"])
        // Not by time stamps, which an image does not keep: files in an image cannot change.
        .args(["-q", "--invalidation-mode", "unchecked-hash"])
        // The paths that tracebacks show are those in the guest.
        .arg("-s")
        .arg(root)
        .args(["-p", "/"])
        .args(directories)
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .env("PYTHONHOME", inside("/usr"))
        // Equal input, equal bytecode: no randomness in the order of sets.
        .env("PYTHONHASHSEED", "0")
        .stdin(Stdio::null())
        .output()
        .map_err(io_error("run", &linker))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(PackError::Bytecode {
            status: output.status,
            said: String::from_utf8_lossy(&said).into_owned(),
        });
    }
    Ok(())
}

/// The directories in `root` that `pattern` names; its last part may end in `*`.
fn matching_directories(root: &Path, pattern: &str) -> Result<Vec<PathBuf>, PackError> {
    let path = root.join(pattern.trim_start_matches('/'));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(PackError::Missing(pattern.to_owned()));
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).map_err(io_error("list", parent))? {
        let entry = entry.map_err(io_error("list", parent))?;
        let candidate = entry.file_name();
        let matches = match name.strip_suffix('*') {
            Some(prefix) => candidate.to_str().is_some_and(|n| n.starts_with(prefix)),
            None => candidate.to_str() == Some(name),
        };
        if matches && entry.path().is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Applies what the recipe states about single files.
fn adjust(recipe: &Recipe, root: &mut Entry) -> Result<(), AssetError> {
    // The scratch directory's own mode is that of the cache.
    root.mode = 0o755;
    for pattern in &recipe.drop {
        // One that matches nothing any more is to be taken out of the recipe.
        if root.remove(pattern)? == 0 {
            return Err(PackError::Missing(pattern.clone()).into());
        }
    }
    for pattern in &recipe.drop_if_there {
        root.remove(pattern)?;
    }
    for directory in &recipe.directories {
        let entry = Entry {
            user: directory.user,
            group: directory.group,
            ..Entry::directory(directory.mode)
        };
        root.insert(&directory.path, entry)?;
    }
    for file in &recipe.files {
        let text = file.text.strip_prefix('\n').unwrap_or(&file.text);
        let entry = Entry {
            user: file.user,
            group: file.group,
            ..Entry::of_root(file.mode, Node::Bytes(text.as_bytes().to_vec()))
        };
        root.insert(&file.path, entry)?;
    }
    for link in &recipe.links {
        let target = link.target.as_bytes().to_vec();
        root.insert(&link.path, Entry::of_root(0o777, Node::Link(target)))?;
    }
    for runner in runners(recipe) {
        let text = Node::Bytes(runner.text.as_bytes().to_vec());
        root.insert(runner.path, Entry::of_root(0o644, text))?;
    }
    for language in &recipe.languages {
        let compiler = language.compile.iter().flat_map(|it| it.command.first());
        let kept = language.runner.iter().chain(&language.session);
        let mut programs = (kept.filter(|word| word.starts_with('/')))
            .chain(language.interpreter.first())
            .chain(compiler);
        if let Some(missing) = programs.find(|path| !has(root, path)) {
            return Err(PackError::Missing(missing.clone()).into());
        }
    }
    Ok(())
}

/// Whether there is something at `path`, also by the links of [`MERGED`].
fn has(root: &Entry, path: &str) -> bool {
    root.get(path).is_some() || root.get(&format!("/usr{path}")).is_some()
}

/// Those of Ember's runners and drivers that the recipe's languages have.
pub(crate) fn runners(recipe: &Recipe) -> impl Iterator<Item = &'static Runner> {
    RUNNERS.iter().chain(DRIVERS).filter(|runner| {
        let languages = recipe.languages.iter();
        let mut words = languages.flat_map(|it| it.runner.iter().chain(&it.session));
        words.any(|word| word == runner.path)
    })
}
