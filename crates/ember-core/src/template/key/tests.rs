use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ember_guest::host::{Command, Stdin};

use super::*;
use crate::assets::Assets;
use crate::template::builder::{Plan, Step};
use crate::{Account, ByteSize, Code, Image, Kernel, Language, Sandbox, Volume};

/// What a template is made from, to be changed one thing at a time.
struct Inputs {
    directory: PathBuf,
    kernel: &'static str,
    image: &'static str,
    /// Where each is, and its file.
    volumes: &'static [(&'static str, &'static str)],
    builder: fn(SandboxBuilder) -> SandboxBuilder,
    command_line: Option<&'static str>,
    modules: &'static [&'static str],
    interpreter: &'static str,
    account: Account,
    steps: Vec<Step>,
    processor: &'static str,
    features: &'static [u8],
}

fn inputs(directory: &Path) -> Inputs {
    Inputs {
        directory: directory.to_owned(),
        kernel: "kernel",
        image: "image",
        volumes: &[("/a", "volume"), ("/b", "volume2")],
        builder: |builder| builder,
        command_line: None,
        modules: &["a.ko", "b.ko"],
        interpreter: "/usr/bin/python3",
        account: Account::default(),
        steps: vec![Step::Run(code()), Step::Exec(command())],
        processor: "GenuineTest family 6 model 1 stepping 1",
        features: b"all of them",
    }
}

fn code() -> Code {
    Code::python("import json").arg("a").env("A", "1")
}

fn command() -> Command {
    Command::new("touch").arg("/tmp/a").env("A", "1")
}

impl Inputs {
    fn key(&self) -> String {
        let at = |name: &str| self.directory.join(name);
        let builder = Sandbox::builder(Image::file(at(self.image)))
            .kernel(Kernel::file(at(self.kernel)))
            .assets(Assets::at(at("cache")));
        let mut builder = (self.builder)(builder);
        for (place, file) in self.volumes {
            builder = builder.volume(place, Volume::file(at(file)));
        }
        let mut prepared = builder.prepare().unwrap();
        if let Some(command_line) = self.command_line {
            prepared.command_line = command_line.to_owned();
        }
        prepared.kernel.modules = self.modules.iter().map(|name| at(name)).collect();
        prepared.image.languages = vec![Language {
            name: "python".to_owned(),
            extensions: vec!["py".to_owned()],
            interpreter: vec![self.interpreter.to_owned()],
            inline: Some("-c".to_owned()),
            ..Language::default()
        }];
        prepared.image.account = self.account.clone();
        let plan = Plan::with(builder, prepared, self.steps.clone()).unwrap();
        let ingredients = Ingredients::new(
            &plan.sandbox,
            &plan.prepared,
            &plan.programs,
            self.processor,
            self.features,
        );
        ingredients.unwrap().key().to_string()
    }
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "kernel",
        "kernel2",
        "image",
        "image2",
        "a.ko",
        "b.ko",
        "program.py",
    ] {
        fs::write(directory.path().join(name), "the same").unwrap();
    }
    for name in ["volume", "volume2"] {
        fs::write(directory.path().join(name), squashfs("the same")).unwrap();
    }
    directory
}

/// What begins as a squashfs does.
fn squashfs(contents: &str) -> Vec<u8> {
    let mut file = vec![0; 512];
    file[..4].copy_from_slice(b"hsqs");
    file[28] = 4;
    file[96..96 + contents.len()].copy_from_slice(contents.as_bytes());
    file
}

#[test]
fn each_thing_that_goes_into_a_template_changes_its_key() {
    let directory = directory();
    let with = |change: &dyn Fn(&mut Inputs)| {
        let mut inputs = inputs(directory.path());
        change(&mut inputs);
        inputs.key()
    };
    let run = |code: Code| with(&|inputs| inputs.steps[0] = Step::Run(code.clone()));
    let exec = |command: Command| with(&|inputs| inputs.steps[1] = Step::Exec(command.clone()));
    let program = directory.path().join("program.py");
    let file = || Code::file(&program);

    let key = with(&|_| {});
    assert_eq!(key.len(), 64);
    assert_eq!(key, with(&|_| {}), "the same makes the same");
    // What is said about the clones alone does not count.
    let limits = |builder: SandboxBuilder| builder.output_limit(ByteSize::mib(1)).kick_signal(40);
    assert_eq!(key, with(&|inputs| inputs.builder = limits));

    let mut keys = BTreeMap::from([(key, "nothing")]);
    let mut changed = |what, key| {
        let before = keys.insert(key, what);
        assert_eq!(before, None, "{what}");
    };
    changed("kernel", with(&|inputs| inputs.kernel = "kernel2"));
    changed("image", with(&|inputs| inputs.image = "image2"));
    changed("no volumes", with(&|inputs| inputs.volumes = &[]));
    changed(
        "volumes' files",
        with(&|inputs| inputs.volumes = &[("/a", "volume2"), ("/b", "volume")]),
    );
    changed(
        "volume's place",
        with(&|inputs| inputs.volumes = &[("/a", "volume"), ("/c", "volume2")]),
    );
    changed(
        "vcpus",
        with(&|inputs| inputs.builder = |builder| builder.vcpus(2)),
    );
    let memory = |builder: SandboxBuilder| builder.memory(ByteSize::mib(128));
    changed("memory", with(&|inputs| inputs.builder = memory));
    let timeout = |builder: SandboxBuilder| builder.timeout(Duration::from_secs(9));
    changed("default timeout", with(&|inputs| inputs.builder = timeout));
    let console = |builder: SandboxBuilder| builder.console(|_| {});
    changed("console", with(&|inputs| inputs.builder = console));
    changed(
        "command line",
        with(&|inputs| inputs.command_line = Some("quiet")),
    );
    changed("a module", with(&|inputs| inputs.modules = &["a.ko"]));
    changed(
        "modules' order",
        with(&|inputs| inputs.modules = &["b.ko", "a.ko"]),
    );
    changed(
        "interpreter",
        with(&|inputs| inputs.interpreter = "/opt/python3"),
    );
    let home = "/home".to_owned();
    changed(
        "account",
        with(&|inputs| inputs.account.home.clone_from(&home)),
    );
    changed("processor", with(&|inputs| inputs.processor = "another"));
    changed("features", with(&|inputs| inputs.features = b"some"));
    changed("no steps", with(&|inputs| inputs.steps.clear()));
    changed("one step", with(&|inputs| inputs.steps.truncate(1)));
    changed("order of steps", with(&|inputs| inputs.steps.reverse()));
    changed(
        "a step twice",
        with(&|inputs| inputs.steps.push(Step::Exec(command()))),
    );
    changed(
        "text",
        run(Code::python("import math").arg("a").env("A", "1")),
    );
    changed("argument", run(code().arg("b")));
    changed("environment", run(code().env("B", "2")));
    changed("value", run(code().env("A", "2")));
    changed("user", run(code().user("nobody")));
    changed("directory", run(code().current_dir("/tmp")));
    changed("input", run(code().stdin("text")));
    changed("piped input", run(code().piped_stdin()));
    changed("timeout", run(code().timeout(Duration::from_secs(1))));
    changed("long text", run(Code::python("#".repeat(200_000))));
    changed("other long text", run(Code::python("-".repeat(200_000))));
    changed("file", run(file()));
    fs::write(&program, "changed ").unwrap();
    changed("file's content", run(file()));
    changed(
        "program",
        exec(Command::new("true").arg("/tmp/a").env("A", "1")),
    );
    changed("arguments", exec(command().arg("b")));
    changed(
        "split argument",
        exec(Command::new("touch").args(["/tmp/", "a"]).env("A", "1")),
    );
    changed("command's environment", exec(command().env("B", "2")));
    changed("cleared environment", exec(command().env_clear()));
    changed("command's input", exec(command().stdin(Stdin::Piped)));
    changed("command's user", exec(command().user("nobody")));
    changed(
        "command's timeout",
        exec(command().timeout(Duration::from_secs(1))),
    );
    let limits = crate::Limits {
        memory: Some(1 << 20),
        ..crate::Limits::default()
    };
    changed("limits", exec(command().limits(limits)));
    fs::write(directory.path().join("kernel"), "of same").unwrap();
    changed("kernel's content", with(&|_| {}));
    fs::write(directory.path().join("image"), "of same").unwrap();
    changed("image's content", with(&|_| {}));
    fs::write(directory.path().join("volume2"), squashfs("of same")).unwrap();
    changed("volume's content", with(&|_| {}));
}

#[test]
fn a_step_that_cannot_be_is_refused_before_anything_is_booted() {
    let directory = directory();
    let mut inputs = inputs(directory.path());
    inputs.steps = vec![Step::Exec(Command::new("a\0b"))];
    let at = |name| directory.path().join(name);
    let builder = Sandbox::builder(Image::file(at("image"))).kernel(Kernel::file(at("kernel")));
    let builder = builder.assets(Assets::at(at("cache")));
    let prepared = builder.prepare().unwrap();
    let plan = Plan::with(builder, prepared, inputs.steps).unwrap();
    let refused = Ingredients::new(&plan.sandbox, &plan.prepared, &plan.programs, "", b"");
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("step 1"), "{error}");
}
