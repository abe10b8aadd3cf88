//! What can be asked for on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use ember_core::{ByteSize, Image, Kernel, Overlay, Placement};

use crate::copy::InImage;
use crate::transfer::Transfer;
use crate::volume::VolumeAt;

const AFTER_HELP: &str = "\
Exit status: that of the program; 128 + N if signal N ended it, 123 if it could not be compiled, 124
if its time was up, 126 if it cannot be executed, 127 if it is not there, 125 if Ember itself failed,
130 after Ctrl-C.";

/// Run programs in microVMs.
#[derive(Debug, Parser)]
#[command(name = "ember", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) task: Task,
}

/// Options that stand before or after the name of the command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Print one JSON object in place of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The root file system: a pack's name, the name of an image in a registry (`debian:12`,
    /// `oci:debian`), names of packages of Debian (`packages:git,make`), or a path: of a directory
    /// or tar file, which has a root file system or is an image (an OCI layout, or of `docker save`;
    /// `:TAG` behind it is one of several), or of a squashfs, erofs or ext4 file [default: the pack
    /// for the program's language, else python].
    #[arg(long, global = true, value_name = "IMAGE", value_parser = image)]
    pub(crate) image: Option<Image>,
    /// The recipe of a pack, to be used as the root file system.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "image")]
    pub(crate) pack_file: Option<PathBuf>,
    /// Show the guest a directory of this host, or what is in a tar or squashfs file, at the absolute
    /// path PATH, read-only. It is what it was when the guest was made. Can be given several times.
    #[arg(long, global = true, value_name = "HOST:/PATH", value_parser = volume_parser())]
    pub(crate) volume: Vec<VolumeAt>,
    /// The kernel: `stock`, `tuned` or a file [default: tuned if it has been built, else stock].
    #[arg(long, global = true, value_name = "KERNEL", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,
    /// How long the program may take, such as `30s` or `2m`.
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// How many processors the guest has.
    #[arg(long, global = true, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) vcpus: u8,
    /// How much memory the guest has, in MiB [default: what the pack's languages need, else 256].
    #[arg(long, global = true, value_name = "MIB", value_parser = mebibytes)]
    pub(crate) memory: Option<ByteSize>,
    /// How much of its memory the guest may copy, in MiB: one that has more is ended. It has to be a
    /// clone [default: all of it].
    #[arg(long, global = true, value_name = "MIB", value_parser = mebibytes,
          conflicts_with_all = ["boot", "console"])]
    pub(crate) memory_cap: Option<ByteSize>,
    /// How much the guest may write over its image and to `/tmp`, in MiB [default: half of its memory].
    #[arg(long, global = true, value_name = "MIB", value_parser = mebibytes)]
    pub(crate) overlay: Option<ByteSize>,
    /// Keep what the guest writes in a file in this directory, which has no name and is gone with the
    /// guest, rather than in its memory: it can be more than the guest has of that.
    #[arg(long, global = true, value_name = "DIRECTORY", requires = "overlay")]
    pub(crate) overlay_directory: Option<PathBuf>,
    /// Where the guest runs: `in-process`, or `worker`, a process of its own [default: what
    /// EMBER_PLACEMENT says, else in-process].
    #[arg(long, global = true, value_name = "PLACEMENT")]
    pub(crate) placement: Option<Placement>,
    /// Boot a guest, rather than clone the template that is kept of such guests.
    #[arg(long, global = true)]
    pub(crate) boot: bool,
    /// Show the guest's console on standard error. Boots a guest.
    #[arg(long, global = true)]
    pub(crate) console: bool,
}

impl Common {
    /// The root file system, if one was named.
    pub(crate) fn named_image(&self) -> Option<Image> {
        let recipe = self.pack_file.as_ref().map(Image::recipe);
        recipe.or_else(|| self.image.clone())
    }

    /// Where what the guest writes is kept, if that was said.
    pub(crate) fn overlay(&self) -> Option<Overlay> {
        let overlay = Overlay::memory(self.overlay?);
        Some(match &self.overlay_directory {
            Some(directory) => overlay.within(directory),
            None => overlay,
        })
    }

    /// The root file system.
    pub(crate) fn image(&self) -> Image {
        self.named_image().unwrap_or_else(|| Image::pack("python"))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Run a program, as an unprivileged user of the guest.
    Run(Run),
    /// Run a command, as root of the guest.
    Exec(Exec),
    /// Run cells in a live interpreter: what one defines is there for the next.
    Session(Session),
    /// Open a shell in a new guest.
    Shell(Shell),
    /// Copy a file or directory of an image out to this host.
    Cp(Copy),
    /// Clone a running guest, and run a command in each of the clones.
    Fork(Fork),
    /// Templates: guests that were booted once, and are cloned from then on.
    #[command(subcommand)]
    Template(Template),
    /// Languages that programs can be in.
    #[command(subcommand)]
    Lang(Lang),
    /// Images: the root file systems that are kept.
    #[command(subcommand)]
    Image(ImageAction),
    /// Say what this host can do, and what to change.
    Doctor,
    /// Measure how long things take on this host.
    Bench(Bench),
    /// Get ready what sandboxes are made from: the kernel and the packs.
    Prepare(Prepare),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The language; a file's extension tells it too.
    #[arg(long, short, value_name = "LANGUAGE", visible_alias = "language")]
    pub(crate) lang: Option<String>,
    /// The program itself.
    #[arg(short, long, value_name = "CODE", requires = "lang")]
    pub(crate) code: Option<String>,
    #[command(flatten)]
    pub(crate) how: How,
    #[command(flatten)]
    pub(crate) transfers: Transfers,
    /// The program's file, or `-` for standard input, unless the program was given; then what the
    /// program is given.
    #[arg(
        value_name = "FILE] [ARGUMENT",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "code"
    )]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) how: How,
    #[command(flatten)]
    pub(crate) transfers: Transfers,
    /// Run the program that the image is for. What follows are its arguments, in place of those that
    /// the image has for it.
    #[arg(long)]
    pub(crate) entry_point: bool,
    /// The command and its arguments.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "entry_point"
    )]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Session {
    /// The language.
    #[arg(long, short, value_name = "LANGUAGE", default_value = "python")]
    pub(crate) lang: String,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    pub(crate) how: How,
    /// The shell, and its arguments.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        default_value = "/bin/bash"
    )]
    pub(crate) words: Vec<OsString>,
}

/// The circumstances of a command.
#[derive(Debug, Args)]
pub(crate) struct How {
    /// The user of the guest that it runs as: `name`, `uid`, `name:group` or `uid:gid`.
    #[arg(long, short, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The directory of the guest that it starts in.
    #[arg(long, short = 'w', value_name = "DIRECTORY")]
    pub(crate) workdir: Option<OsString>,
    /// A variable of its environment.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
}

/// Files that go in before, and out after.
#[derive(Debug, Args)]
pub(crate) struct Transfers {
    /// Copy a file or directory of this host into the guest before the program starts. GUEST is its
    /// name there, relative to where the program starts, or a directory to put it into if it ends
    /// in a slash; what is in a directory HOST is put into the directory GUEST. Without GUEST it keeps
    /// its name. Can be given several times.
    #[arg(long, value_name = "HOST[:GUEST]", value_parser = transfer_parser())]
    pub(crate) put: Vec<Transfer>,
    /// Copy a file or directory of the guest out to this host when the program has ended, also if it
    /// failed or its time was up. GUEST is relative to where the program started; if it has `*`,
    /// `?` or `[..]` in it, or `**` for any number of directories, all that matches is put into the
    /// directory HOST, under its path. Nothing is written outside of HOST, and links that lead out of it are left
    /// out. Without HOST it keeps its name, here. Can be given several times.
    #[arg(long, value_name = "GUEST[:HOST]", value_parser = transfer_parser())]
    pub(crate) get: Vec<Transfer>,
}

#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// What is copied: `debian:12:/etc/os-release`, `./rootfs.tar:/usr/share/doc`. IMAGE is as for
    /// --image. If PATH has `*`, `?` or `[..]` in it, or `**` for any number of directories, all that
    /// matches is put into the directory HOST, under its path.
    #[arg(value_name = "IMAGE:/PATH", value_parser = in_image_parser())]
    pub(crate) from: InImage,
    /// Where it is put: a file gets this name, or keeps its own in a directory that is there or that
    /// ends in a slash; what is in a directory is put into this one. Nothing is written outside of it, and
    /// links that lead out of it are left out.
    #[arg(value_name = "HOST")]
    pub(crate) to: OsString,
}

#[derive(Debug, Args)]
pub(crate) struct Fork {
    /// How many clones. All of them are alive at once.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) count: u16,
    /// How many clones are prepared ahead of the first, and kept so.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) shells: u16,
    /// A command to run before the guest is cloned, by its shell.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) prepare: Vec<String>,
    #[command(flatten)]
    pub(crate) how: How,
    /// The command to run in each clone, and its arguments. None: each clone only answers.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Template {
    /// Build the template of such guests, unless it is there.
    Build(Build),
    /// List the templates that are kept.
    Ls,
    /// Say what a template was made from.
    Show {
        /// Its key, or how it begins.
        key: String,
    },
    /// Remove templates.
    Rm(Remove),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Lang {
    /// List them, with their versions as far as their packs have been built.
    Ls,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageAction {
    /// Fetch an image from its registry, also if its name stood for another before.
    Pull(Pull),
    /// Make an image of a directory, a tar file, an image in files, or packages of Debian.
    Build {
        /// The directory or tar file, which has a root file system, or an image as an OCI layout or
        /// as `docker save` writes it, one of several by its tag; or the names of packages.
        #[arg(value_name = "PATH[:TAG]|PACKAGE", required = true)]
        from: Vec<String>,
    },
    /// List the images that are kept.
    Ls,
    /// Remove images whose names stand for others by now.
    Prune {
        /// Remove all, but for packs.
        #[arg(long)]
        all: bool,
        /// Remove those, too, that nobody has asked for in this time, such as `7d`; but for packs.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        unused_for: Option<Duration>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Its name: `debian:12`, `registry.example:5000/team/tool@sha256:…`.
    pub(crate) name: String,
    /// Who asks.
    #[arg(long, value_name = "USER", requires = "password_file")]
    pub(crate) username: Option<String>,
    /// The file with the password; `-` is standard input. One that is given as an argument could be
    /// seen by others.
    #[arg(long, value_name = "FILE", requires = "username")]
    pub(crate) password_file: Option<PathBuf>,
    /// Speak to the registry without encryption.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// The platform, such as `linux/amd64` [default: this host's].
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// The certificate of an authority that the registry's own may be signed by, as PEM text.
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// A command to run before the guest is saved, by its shell and as its root.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) prepare: Vec<String>,
    /// A program to run before the guest is saved, after the commands.
    #[arg(long, value_name = "FILE")]
    pub(crate) warm_up: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Their keys, or how these begin.
    #[arg(value_name = "KEY", required_unless_present = "all")]
    pub(crate) keys: Vec<String>,
    /// Remove all that are kept.
    #[arg(long, conflicts_with = "keys")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// How often each thing is measured; what takes long, less often.
    #[arg(long, value_name = "N", default_value_t = 50,
          value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) samples: u16,
}

#[derive(Debug, Args)]
pub(crate) struct Prepare {
    /// The packs to prepare.
    #[arg(default_value = "python", value_name = "PACK")]
    pub(crate) packs: Vec<String>,
    /// Look for a newer kernel and newer packages than those that are there.
    #[arg(long)]
    pub(crate) renew: bool,
    /// Also write the initramfs that guests start from to FILE.
    #[arg(long, value_name = "FILE")]
    pub(crate) initramfs: Option<PathBuf>,
}

fn in_image_parser() -> impl TypedValueParser<Value = InImage> {
    OsStringValueParser::new().try_map(|text| InImage::parse(&text))
}

fn volume_parser() -> impl TypedValueParser<Value = VolumeAt> {
    OsStringValueParser::new().try_map(|text| VolumeAt::parse(&text))
}

fn transfer_parser() -> impl TypedValueParser<Value = Transfer> {
    OsStringValueParser::new().try_map(|text| Transfer::parse(&text))
}

// The shape of clap's parsers; these accept anything.
type Parsed<T> = Result<T, String>;

#[allow(clippy::unnecessary_wraps, reason = "the shape of a parser")]
fn kernel(text: &str) -> Parsed<Kernel> {
    Ok(match text {
        "stock" => Kernel::stock(),
        "tuned" => Kernel::tuned(),
        path => Kernel::file(path),
    })
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a parser")]
fn image(text: &str) -> Parsed<Image> {
    Ok(Image::named(text))
}

fn mebibytes(text: &str) -> Parsed<ByteSize> {
    let count: u64 = text
        .parse()
        .map_err(|_| "it is a number of MiB, such as 256".to_owned())?;
    Ok(ByteSize::mib(count))
}

fn variable(text: &str) -> Parsed<(String, String)> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| "it is NAME=VALUE".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_follows_a_program_is_its_own() {
        let arguments = Arguments::parse_from([
            "ember",
            "run",
            "--timeout",
            "2m",
            "x.py",
            "--json",
            "-c",
            "--",
            "y",
        ]);
        assert!(!arguments.common.json);
        assert_eq!(arguments.common.timeout, Some(Duration::from_secs(120)));
        let Task::Run(run) = arguments.task else {
            panic!("not run");
        };
        assert_eq!(run.words, ["x.py", "--json", "-c", "--", "y"]);
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for words in [
            ["ember", "--json", "exec", "--", "ls", "-l"],
            ["ember", "exec", "--json", "--", "ls", "-l"],
        ] {
            let arguments = Arguments::parse_from(words);
            assert!(arguments.common.json);
            let Task::Exec(exec) = arguments.task else {
                panic!("not exec");
            };
            assert_eq!(exec.words, ["ls", "-l"]);
        }
    }

    #[test]
    fn volumes_are_collected_on_either_side_of_the_command() {
        for words in [
            [
                "ember", "--volume", "a:/a", "--volume", "b:/b", "exec", "ls",
            ],
            [
                "ember", "exec", "--volume", "a:/a", "--volume", "b:/b", "ls",
            ],
        ] {
            assert_eq!(Arguments::parse_from(words).common.volume.len(), 2);
        }
        let words = ["ember", "exec", "--volume", "a:b", "ls"];
        let error = Arguments::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains("HOST:/PATH"), "{error}");
    }

    #[test]
    fn what_is_written_is_in_memory_or_where_was_said() {
        let overlay = |words: &[&str]| {
            let words = ["ember", "exec"].iter().chain(words).chain(&["ls"]);
            Arguments::try_parse_from(words).map(|it| it.common.overlay())
        };
        assert_eq!(overlay(&[]).unwrap(), None);
        let size = ByteSize::mib(300);
        assert_eq!(
            overlay(&["--overlay", "300"]).unwrap(),
            Some(Overlay::memory(size))
        );
        let words = ["--overlay", "300", "--overlay-directory", "/srv"];
        let file = Overlay::file(size).within("/srv");
        assert_eq!(overlay(&words).unwrap(), Some(file));
        let error = overlay(&words[2..]).unwrap_err().to_string();
        assert!(error.contains("--overlay <MIB>"), "{error}");
    }

    #[test]
    fn a_placement_is_one_of_those_there_are() {
        let words = ["ember", "fork", "--placement", "worker"];
        let arguments = Arguments::parse_from(words);
        assert_eq!(arguments.common.placement, Some(Placement::Worker));
        let words = ["ember", "fork", "--placement", "elsewhere"];
        let error = Arguments::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains("`in-process` or `worker`"), "{error}");
    }

    #[test]
    fn a_program_needs_a_language_and_a_run_a_program() {
        for words in [
            &["ember", "run"][..],
            &["ember", "run", "-c", "print(1)"],
            &["ember", "--vcpus", "0", "run", "x.py"],
            &["ember", "--memory", "much", "run", "x.py"],
            &["ember", "exec"],
            &["ember", "image", "pull"],
            &["ember", "image", "pull", "a", "--username", "b"],
            &["ember", "image", "build"],
        ] {
            assert!(Arguments::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
