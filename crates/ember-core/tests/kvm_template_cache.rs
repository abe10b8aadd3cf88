//! Templates on disk: built once, believed only when they are complete, never needed by clones.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{runtime, template, use_kernels_and_images};
use ember_core::{
    Assets, ByteSize, Code, Command, ErrorKind, Event, LoadOptions, Progress, Sandbox, Template,
    TemplateBuilder, Templates,
};
use tempfile::TempDir;

/// Tells the process that is to build a template where the cache is.
const CACHE: &str = "EMBER_TEST_TEMPLATE_CACHE";
const BOOT: &str = "boot the template's guest";
const SAVE: &str = "save the template";
const WARM_UP: &str = "warm up (1 of 1)";
const STATE: &str = "take the guest's state";

/// A cache with this user's kernels and images and no templates, and what was done for it.
struct Cache {
    directory: TempDir,
    steps: Arc<Mutex<Vec<String>>>,
}

impl Cache {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        use_kernels_and_images(directory.path());
        Self {
            directory,
            steps: Arc::default(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn builder(&self) -> TemplateBuilder {
        let steps = Arc::clone(&self.steps);
        builder(self.path(), move |step| {
            steps.lock().unwrap().push(step.to_owned());
        })
    }

    /// What was done since this was asked last.
    fn steps(&self) -> Vec<String> {
        std::mem::take(&mut self.steps.lock().unwrap())
    }

    fn templates(&self) -> Templates {
        Templates::of(&Assets::at(self.path()))
    }

    /// The file of the only template.
    fn file(&self) -> PathBuf {
        let [template] = &self.templates().list().unwrap()[..] else {
            panic!("there is not one template")
        };
        template.path.clone()
    }

    /// What is in the store besides templates and locks.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("templates"));
        entries
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()))
            .into_iter()
            .flatten()
            .filter(|name| name.starts_with('.') && name != ".locks")
            .collect()
    }
}

fn builder(cache: &Path, told: impl Fn(&str) + Send + Sync + 'static) -> TemplateBuilder {
    let progress = Progress::new(move |event| match event {
        Event::Started { step } => told(step),
        Event::Noticed { message } => told(&format!("notice: {message}")),
        _ => {}
    });
    template("bash")
        .memory(ByteSize::mib(128))
        .assets(Assets::at(cache).with_progress(progress))
        .warm_up(Code::new("bash", "printf yes > /home/user/warm"))
}

async fn shows_what_was_warmed_up(template: &Template) -> Sandbox {
    let clone = template.fork().await.unwrap();
    let program = "echo $(</home/user/warm) $((6 * 7)); printf changed > /home/user/warm";
    let out = clone.run(Code::new("bash", program)).await.unwrap();
    assert_eq!(out.stdout, "yes 42\n", "{out:?}");
    clone
}

/// This program again, building the template in another process.
fn start_builder(cache: &Path) -> Child {
    Process::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "builder_process"])
        .env(CACHE, cache)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "what the tests start in a process of its own"]
fn builder_process() {
    let Some(cache) = std::env::var_os(CACHE) else {
        return;
    };
    runtime().block_on(async {
        let template = builder(Path::new(&cache), |step| println!("step: {step}"));
        let template = template.build().await.unwrap();
        shows_what_was_warmed_up(&template).await.close().await;
        println!("digest: {}", template.digest().await.unwrap());
    });
}

/// What that process did, and the digest of its template.
fn finish_builder(process: Child) -> (Vec<String>, String) {
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let lines = |prefix| text.lines().filter_map(move |line| line.split_once(prefix));
    let steps = lines("step: ").map(|(_, step)| step.to_owned()).collect();
    let (_, digest) = lines("digest: ").next().unwrap();
    (steps, digest.to_owned())
}

#[test]
fn a_template_is_built_once_and_found_by_all_and_never_changed() {
    let cache = Cache::new();
    runtime().block_on(async {
        let built = cache.builder().build().await.unwrap();
        let steps = [
            BOOT,
            WARM_UP,
            "give back free memory",
            "take the guest's state",
        ];
        assert_eq!(cache.steps(), [&steps[..], &[SAVE]].concat());
        let digest = built.digest().await.unwrap();
        let clone = shows_what_was_warmed_up(&built).await;
        shows_what_was_warmed_up(&built).await.close().await;
        built.verify().await.unwrap();

        let found = cache.builder().build().await.unwrap();
        assert_eq!(cache.steps(), [""; 0]);
        assert_eq!(found.digest().await.unwrap(), digest);
        // The clone of a clone, too.
        let first = shows_what_was_warmed_up(&found).await;
        let second = first.fork().await.unwrap();
        let show = Command::new("cat").arg("/home/user/warm");
        assert_eq!(second.exec(show).await.unwrap().stdout, "changed");
        found.verify().await.unwrap();

        let (done, elsewhere) = finish_builder(start_builder(cache.path()));
        assert_eq!(done, [""; 0]);
        assert_eq!(elsewhere, digest.to_string());

        let other = cache.builder().memory(ByteSize::mib(129)).cached(false);
        other.build().await.unwrap();
        assert_eq!(cache.steps(), steps);

        // What is known of it.
        let [listed] = &cache.templates().list().unwrap()[..] else {
            panic!("there is not one template")
        };
        let manifest = listed.manifest.as_ref().unwrap();
        assert_eq!(listed.image(), Some("bash"));
        assert_eq!((manifest.vcpus, manifest.memory_bytes), (1, 128 << 20));
        assert_eq!(manifest.memory_hash, Some(digest));
        assert_eq!(manifest.kernel.as_ref().unwrap().name, "tuned");
        assert!(manifest.built_from["warm-up 1"].starts_with("bash: printf"));
        assert!(
            listed.bytes > 1 << 20 && listed.bytes < 128 << 20,
            "{}",
            listed.bytes
        );
        assert!(listed.last_used >= manifest.created);
        let by_prefix = cache.templates().find(&listed.key[..12]).unwrap();
        assert_eq!(by_prefix.key, listed.key);
        let none = cache.templates().find("no such").unwrap_err();
        assert_eq!(none.kind(), ErrorKind::InvalidRequest);

        // Gone, with its clones alive.
        assert!(cache.templates().remove(&listed.key).unwrap());
        assert!(!cache.templates().remove(&listed.key).unwrap());
        assert_eq!(cache.templates().list().unwrap().len(), 0);
        clone.ping().await.unwrap();
        shows_what_was_warmed_up(&found).await.close().await;
    });
}

#[test]
fn of_several_builders_one_builds() {
    let cache = Cache::new();
    let process = start_builder(cache.path());
    let digests = runtime().block_on(async {
        let builds = [(); 2].map(|()| tokio::spawn(cache.builder().build()));
        let mut digests = Vec::new();
        for build in builds {
            let template = build.await.unwrap().unwrap();
            digests.push(template.digest().await.unwrap().to_string());
        }
        digests
    });
    let (mut steps, digest) = finish_builder(process);
    steps.extend(cache.steps());
    assert_eq!(digests, [digest.clone(), digest]);
    let count = |wanted| steps.iter().filter(|step| *step == wanted).count();
    assert_eq!(count(BOOT), 1, "{steps:?}");
    assert!(
        count("wait for another who builds this template") >= 1,
        "{steps:?}"
    );
}

#[test]
fn a_builder_that_is_killed_leaves_nothing_that_is_believed() {
    is_killed_at(&[(BOOT, 300), (STATE, 0), (SAVE, 60)]);
}

#[test]
#[ignore = "the same at more moments, each of which is a build: minutes"]
fn a_builder_can_be_killed_at_any_moment() {
    let moments = [
        (BOOT, 0),
        (WARM_UP, 0),
        (WARM_UP, 100),
        (STATE, 50),
        (STATE, 150),
        (SAVE, 0),
        (SAVE, 20),
        (SAVE, 150),
        (SAVE, 300),
    ];
    is_killed_at(&moments);
}

/// Each after which step, and how many milliseconds after.
fn is_killed_at(moments: &[(&str, u64)]) {
    let cache = Cache::new();
    for &(step, milliseconds) in moments {
        let mut process = start_builder(cache.path());
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let found = lines.any(|line| line.unwrap().ends_with(&format!("step: {step}")));
        std::thread::sleep(Duration::from_millis(milliseconds));
        process.kill().unwrap();
        process.wait().unwrap();
        let templates = cache.templates().list().unwrap();
        for template in &templates {
            // It was faster: then the template is there, and is good.
            template.manifest.as_ref().unwrap();
            assert!(cache.templates().remove(&template.key).unwrap());
        }
        assert!(found, "there was no {step:?}");
    }
    let template = runtime().block_on(cache.builder().build()).unwrap();
    assert!(cache.steps().contains(&SAVE.to_owned()));
    assert_eq!(cache.left(), [""; 0]);
    runtime().block_on(async { shows_what_was_warmed_up(&template).await.close().await });
}

#[test]
fn a_file_that_is_not_what_it_was_is_refused_and_built_anew() {
    let cache = Cache::new();
    runtime().block_on(async {
        let template = cache.builder().build().await.unwrap();
        let digest = template.digest().await.unwrap();
        let clone = shows_what_was_warmed_up(&template).await;
        let file = cache.file();
        let original = fs::read(&file).unwrap();
        let copy = cache.path().join("copy.ember");
        fs::write(&copy, &original).unwrap();
        let loaded = Template::load(&copy).await.unwrap();
        assert_eq!(loaded.digest().await.unwrap(), digest);

        // Somewhere in it, at the end of it, and all of it.
        let length = original.len() as u64;
        let spoiled = File::options().write(true).open(&copy).unwrap();
        for part in 0..=20 {
            let at = (length - 1) * part / 20;
            let byte = original[usize::try_from(at).unwrap()];
            spoiled.write_all_at(&[byte ^ 0x10], at).unwrap();
            let error = Template::load(&copy).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "byte {at}: {error:?}");
            spoiled.write_all_at(&[byte], at).unwrap();
        }
        for length in [length - 1, length / 2, 4096, 5, 0] {
            spoiled.set_len(length).unwrap();
            let error = Template::load(&copy).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Damaged,
                "{length} bytes: {error:?}"
            );
            fs::write(&copy, &original).unwrap();
        }
        fs::remove_file(&copy).unwrap();
        let error = Template::load(&copy).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared, "{error:?}");
        assert!(error.to_string().contains("copy.ember"), "{error}");

        // The one in the cache: overwritten in place, cut off, gone. Whoever has it has it.
        let spoil: [&dyn Fn(); 3] = [
            &|| fs::write(&file, original.iter().map(|byte| !byte).collect::<Vec<_>>()).unwrap(),
            &|| File::create(&file).unwrap().set_len(100).unwrap(),
            &|| fs::remove_file(&file).unwrap(),
        ];
        for spoil in spoil {
            cache.steps();
            spoil();
            let listed = cache.templates().list().unwrap();
            listed[0].manifest.as_ref().unwrap_err();
            clone.ping().await.unwrap();
            template.verify().await.unwrap();
            shows_what_was_warmed_up(&loaded).await.close().await;

            let anew = cache.builder().build().await.unwrap();
            let steps = cache.steps();
            let told = steps.iter().any(|step| {
                step.starts_with("notice: the template") && step.contains("is built anew")
            });
            assert!(told && steps.contains(&SAVE.to_owned()), "{steps:?}");
            shows_what_was_warmed_up(&anew).await.close().await;
            listed[0].path.metadata().unwrap();
            cache.builder().build().await.unwrap();
            assert_eq!(cache.steps(), [""; 0]);
        }
        assert_eq!(cache.left(), [""; 0]);
    });
}

#[test]
fn a_store_that_cannot_be_written_to_costs_only_the_time() {
    // In namespaces of its own, whose mounts are its to make.
    ember_leak::isolated_namespaces!(|| {
        let cache = Cache::new();
        let store = cache.path().join("templates");
        fs::create_dir(&store).unwrap();
        let mount = |arguments: &[&str]| {
            let mount = Process::new("mount").args(arguments).arg(&store).status();
            assert!(mount.unwrap().success(), "{arguments:?}");
        };
        // Smaller than any guest.
        mount(&["-t", "tmpfs", "-o", "size=4m", "full"]);
        runtime().block_on(async {
            let template = cache.builder().build().await.unwrap();
            let steps = cache.steps();
            let notice = steps.last().unwrap();
            assert!(
                notice.contains("not kept") && notice.contains("No space"),
                "{steps:?}"
            );
            shows_what_was_warmed_up(&template).await.close().await;
            assert_eq!(cache.left(), [""; 0]);
            assert_eq!(cache.templates().list().unwrap().len(), 0);
            let error = template.save(store.join("own.ember")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
            assert_eq!(cache.left(), [""; 0]);
            let error = template.save(store.join("no/own.ember")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
        });
        mount(&["-o", "remount,ro"]);
        runtime().block_on(async {
            let template = cache.builder().build().await.unwrap();
            let steps = cache.steps();
            let told = |step: &String| step.contains("not kept") && step.contains("Read-only");
            assert!(steps.iter().any(told), "{steps:?}");
            shows_what_was_warmed_up(&template).await.close().await;
        });
    });
}

#[test]
fn what_a_clone_became_is_saved_as_what_is_different() {
    let cache = Cache::new();
    let at = |name: &str| cache.path().join(name);
    runtime().block_on(async {
        let template = cache.builder().build().await.unwrap();
        let append = "echo $0 >> /home/user/warm";
        let mut sandbox = template.fork().await.unwrap();
        let mut digests = Vec::new();
        for name in ["a", "b", "c"] {
            let append = Command::from_argv(["sh", "-c", append, name]);
            assert!(sandbox.exec(append).await.unwrap().success());
            let snapshot = sandbox.snapshot().await.unwrap();
            snapshot.save(at(name)).await.unwrap();
            digests.push(snapshot.digest().await.unwrap());
            let next = snapshot.fork().await.unwrap();
            sandbox.close().await;
            sandbox = next;
            // The next one's parent is on disk alone.
        }
        sandbox.close().await;
        drop(template);
        let bytes = |path: &Path| path.metadata().unwrap().len();
        for name in ["a", "b", "c"] {
            assert!(
                bytes(&at(name)) < bytes(&cache.file()) / 2,
                "{name} is not a diff"
            );
        }

        let shows = async |path: &Path, wanted: &str| {
            let template = Template::load(path).await.unwrap();
            let clone = template.fork().await.unwrap();
            let show = Command::new("cat").arg("/home/user/warm");
            assert_eq!(clone.exec(show).await.unwrap().stdout, wanted);
            clone.close().await;
            template.digest().await.unwrap()
        };
        assert_eq!(shows(&at("c"), "yesa\nb\nc\n").await, digests[2]);

        // In the middle, and with the same memory: those above do not notice.
        Template::compact(at("b")).await.unwrap();
        assert!(bytes(&at("b")) > bytes(&at("a")));
        assert_eq!(shows(&at("b"), "yesa\nb\n").await, digests[1]);
        assert_eq!(shows(&at("c"), "yesa\nb\nc\n").await, digests[2]);
        // What "a" needs is not there any more, and what "b" needed before is not needed.
        let key = cache.templates().list().unwrap()[0].key.clone();
        cache.templates().remove(&key).unwrap();
        let error = Template::load(at("a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared, "{error:?}");
        assert_eq!(shows(&at("c"), "yesa\nb\nc\n").await, digests[2]);
        // Another in its place.
        fs::copy(at("c"), at("kept")).unwrap();
        let other = Template::load(at("c")).await.unwrap();
        other.save_whole(at("b")).await.unwrap();
        let error = Template::load(at("kept")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
        Template::compact(at("kept")).await.unwrap_err();
        assert_eq!(shows(&at("b"), "yesa\nb\nc\n").await, digests[2]);

        // An image that is another is no image.
        fs::write(at("image"), "something").unwrap();
        let options = LoadOptions::new().image(at("image"));
        let error = Template::load_with(at("b"), options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
    });
}
