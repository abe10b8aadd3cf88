//! A pool of sandboxes for each language pack.

use std::fs;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ember_core::{
    Assets, ByteSize, Code, Error, Image, Language, Pool, PoolFork, PooledSandbox, Progress,
    Template,
};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::options::Options;

/// What a guest has if neither its pack nor the command line says so.
const MEMORY: ByteSize = ByteSize::mib(256);

/// The packs that there are sandboxes of, the usual one first.
#[derive(Debug)]
pub(crate) struct Packs(Vec<Arc<Pack>>);

/// A pack, and its pool once that is filled.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) name: String,
    /// As far as they are known without its image.
    languages: Vec<Language>,
    /// What runs while its template is built.
    warm_up: Vec<Code>,
    ready: OnceLock<Ready>,
}

#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) pool: Pool,
    /// With their versions.
    languages: Vec<Language>,
    /// Of each guest.
    pub(crate) memory: ByteSize,
    /// What all sandboxes share.
    pub(crate) shared_bytes: u64,
}

impl Packs {
    /// Those that `options` name. Nothing is built yet.
    pub(crate) fn named(options: &Options) -> Result<Self> {
        let known = Assets::of_user()?.packs()?;
        let mut packs: Vec<Pack> = Vec::new();
        for name in &options.packs {
            let Some(pack) = known.iter().find(|pack| pack.name == *name) else {
                let names: Vec<&str> = known.iter().map(|pack| pack.name.as_str()).collect();
                bail!("there is no pack {name:?}; there are: {}", names.join(", "));
            };
            if let Some(problem) = &pack.problem {
                bail!("the pack {name} has a flaw: {problem}");
            }
            if packs.iter().all(|pack| pack.name != *name) {
                packs.push(Pack::new(name, pack.languages.clone()));
            }
        }
        for path in &options.warm_up {
            let code = Code::file(path);
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read the program {}", path.display()))?;
            let mut is_known = false;
            for pack in &mut packs {
                if let Ok(language) = code.find_language(&pack.languages) {
                    // As text it runs in the interpreter that is kept warm, and not beside it.
                    let code = Code::new(&language.name, &text);
                    pack.warm_up.push(code);
                    is_known = true;
                }
            }
            if !is_known {
                bail!(
                    "{}: its name's extension tells no language of the packs {}",
                    path.display(),
                    options.packs.join(", ")
                );
            }
        }
        Ok(Self(packs.into_iter().map(Arc::new).collect()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pack>> {
        self.0.iter()
    }

    /// Builds the templates and fills the pools, one after the other.
    pub(crate) async fn prepare(&self, options: &Options, metrics: &Arc<Metrics>) -> Result<()> {
        for pack in &self.0 {
            let ready = pack
                .prepare(options, metrics)
                .await
                .with_context(|| format!("cannot make sandboxes of the pack {}", pack.name))?;
            tracing::info!(
                pack = pack.name,
                memory = %ready.memory,
                ready = options.ready,
                max = options.max,
                "the pool is filled"
            );
            // It is set nowhere else.
            let _ = pack.ready.set(ready);
        }
        Ok(())
    }

    /// Whether all pools are there.
    pub(crate) fn are_ready(&self) -> bool {
        self.0.iter().all(|pack| pack.ready.get().is_some())
    }

    /// The pack of that name, or that has a language of that name; and the language's own name.
    pub(crate) fn find(&self, wanted: &str) -> Option<(&Arc<Pack>, String)> {
        let by_name = self.0.iter().find(|pack| pack.name == wanted);
        let named = by_name.and_then(|pack| Some((pack, pack.languages().first()?)));
        let mut all = self.0.iter().flat_map(|pack| {
            pack.languages()
                .iter()
                .map(move |language| (pack, language))
        });
        all.find(|(_, language)| language.answers_to(wanted))
            .or(named)
            .map(|(pack, language)| (pack, language.name.clone()))
    }

    /// All languages, for people.
    pub(crate) fn known(&self) -> String {
        let languages = self.0.iter().flat_map(|pack| pack.languages());
        let names: Vec<&str> = languages.map(|language| language.name.as_str()).collect();
        names.join(", ")
    }

    /// Ends all sandboxes, and gives the number of those that did not end in time.
    pub(crate) async fn drain(&self, limit: Duration) -> usize {
        let pools = self.0.iter().filter_map(|pack| pack.ready.get());
        let draining: Vec<_> = pools
            .map(|ready| {
                let pool = ready.pool.clone();
                tokio::spawn(async move { pool.drain(limit).await })
            })
            .collect();
        let mut left = 0;
        for pool in draining {
            left += pool.await.unwrap_or(1);
        }
        left
    }

    /// Packs without sandboxes, for tests of what comes before those.
    #[cfg(test)]
    pub(crate) fn unready(languages: &[(&str, &[&str])]) -> Self {
        let pack = |(name, aliases): &(&str, &[&str])| {
            let language = Language {
                name: (*name).to_owned(),
                aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
                ..Language::default()
            };
            Arc::new(Pack::new(name, vec![language]))
        };
        Self(languages.iter().map(pack).collect())
    }
}

impl Pack {
    fn new(name: &str, languages: Vec<Language>) -> Self {
        Self {
            name: name.to_owned(),
            languages,
            warm_up: Vec::new(),
            ready: OnceLock::new(),
        }
    }

    pub(crate) fn languages(&self) -> &[Language] {
        match self.ready.get() {
            Some(ready) => &ready.languages,
            None => &self.languages,
        }
    }

    pub(crate) fn ready(&self) -> Option<&Ready> {
        self.ready.get()
    }

    /// A sandbox, waiting for one at most as long as is allowed.
    pub(crate) async fn acquire(&self, options: &Options) -> Result<PooledSandbox, ApiError> {
        let Some(ready) = self.ready.get() else {
            return Err(ApiError::preparing(&self.name));
        };
        Ok(ready.pool.acquire_within(options.queue_timeout).await?)
    }

    async fn prepare(&self, options: &Options, metrics: &Arc<Metrics>) -> Result<Ready, Error> {
        let assets = Assets::of_user()?.with_progress(progress(&self.name));
        let image = Image::pack(&self.name);
        let task = {
            let (assets, image) = (assets.clone(), image.clone());
            tokio::task::spawn_blocking(move || assets.image(&image))
        };
        // A task that panics has said so on standard error.
        let built = match task.await {
            Ok(built) => built?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let of_pack = built.memory_mib.map(|mib| ByteSize::mib(mib.into()));
        let memory = options.memory.or(of_pack).unwrap_or(MEMORY);
        let mut builder = Template::builder(image)
            .assets(assets)
            .vcpus(options.vcpus)
            .memory(memory)
            .placement(options.placement)
            .timeout(options.exec_timeout)
            .output_limit(options.output_limit);
        if let Some(kernel) = &options.kernel {
            builder = builder.kernel(kernel.clone());
        }
        if let Some(cap) = options.memory_cap {
            builder = builder.memory_cap(cap);
        }
        for code in &self.warm_up {
            builder = builder.warm_up(code.clone());
        }
        let template = builder.build().await?;
        let shared_bytes = template.shared_bytes();
        let (name, metrics) = (self.name.clone(), Arc::clone(metrics));
        let pool = Pool::builder(template)
            .ready(options.ready)
            .max(options.max)
            .on_fork(move |fork| match fork {
                PoolFork::Made { object, reply } => metrics.forked(&name, object, reply),
                PoolFork::Failed(error) => {
                    tracing::warn!(pack = name, ?error, "a sandbox could not be made");
                    metrics.fork_failed(&name);
                }
                _ => {}
            })
            .build()
            .await?;
        Ok(Ready {
            pool,
            languages: built.languages,
            memory,
            shared_bytes,
        })
    }
}

/// Logs what takes long.
fn progress(pack: &str) -> Progress {
    let pack = pack.to_owned();
    Progress::new(move |event| match event {
        ember_core::Event::Started { step } => tracing::info!(pack, "{step} …"),
        ember_core::Event::Finished {
            step,
            elapsed,
            succeeded: true,
        } => tracing::info!(pack, "{step}: done in {:.1} s", elapsed.as_secs_f64()),
        // What is noticed is logged by the library, and what fails by who needs it.
        _ => {}
    })
}
