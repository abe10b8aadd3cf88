//! Templates that were built before, or are built now by somebody else.

use std::io;
use std::path::Path;
use std::time::Duration;

use ember_snapshot::store::{Claim, Store, StoreError};
use ember_vmm::Processor;

use super::Inner;
use super::builder::Plan;
use super::file::{self, Form, chain_of, read_error};
use super::key::{Ingredients, Key};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};
use crate::progress::Progress;

/// The template in its entry of the store.
pub(super) const FILE: &str = "template.ember";

/// How often to look whether another builder has finished. A build takes seconds.
const LOOK: Duration = Duration::from_millis(50);

/// Takes the template that `plan` describes from the cache, or builds it and puts it there.
pub(super) async fn find_or_build(mut plan: Plan) -> Result<Inner, Error> {
    let progress = plan.prepared.assets.progress().clone();
    let Ok(processor) = Processor::of_host() else {
        // Without KVM there is no template to be had: to boot one says so, and what to do.
        return plan.build().await;
    };
    let mut ingredients = Ingredients::new(
        &plan.sandbox,
        &plan.prepared,
        &plan.programs,
        &processor.to_string(),
        processor.features(),
    )?;
    if !plan.is_recorded {
        ingredients.without_working_set();
    }
    let store = plan.prepared.assets.templates();
    let key = ingredients.key();

    let found;
    (plan, found) = look(plan, &store, &key).await?;
    if let Found::Template(inner) = found {
        return Ok(*inner);
    }
    let claim = match claim(&store, &key, &progress).await {
        Ok(claim) => claim,
        Err(error) => {
            progress.notice(&not_kept(&error));
            return plan.build().await;
        }
    };
    // Another may have built it meanwhile, or in place of one that could not be used.
    let found;
    (plan, found) = look(plan, &store, &key).await?;
    match found {
        Found::Template(inner) => return Ok(*inner),
        Found::Refused(why) => progress.notice(&format!(
            "the template {} in the cache cannot be used and is built anew: {}",
            key.short(),
            chain_of(&why)
        )),
        Found::Nothing => {}
    }
    let mut inner = plan.build().await?;
    let origin = &mut inner.fixture.origin;
    let mut described = origin.as_ref().clone();
    described.built_from.extend(ingredients.described());
    *origin = described.into();
    keep(inner, claim, &progress).await
}

/// What is in the store.
enum Found {
    Nothing,
    Template(Box<Inner>),
    /// Something that cannot be used.
    Refused(Error),
}

/// Looks for the template and loads it. Gives back `plan`, which went to another thread.
async fn look(plan: Plan, store: &Store, key: &Key) -> Result<(Plan, Found), Error> {
    let (store, key) = (store.clone(), key.clone());
    blocking("loading a template", move || {
        let path = match store.get(key.as_str()) {
            Ok(Some(entry)) => entry.join(FILE),
            // What keeps the store from being read keeps it from being written to, and that is said.
            Ok(None) | Err(_) => return Ok((plan, Found::Nothing)),
        };
        let found = match load(&plan, &path) {
            Ok(inner) => Found::Template(Box::new(inner)),
            // It would be so when it is built, too.
            Err(error) if lacks_room(&error) => return Err(error),
            Err(error) => Found::Refused(error),
        };
        Ok((plan, found))
    })
    .await
}

/// Whether this host had no room for the template, as opposed to a template that cannot be read.
fn lacks_room(error: &Error) -> bool {
    let full = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.downcast_ref().is_some_and(full) {
            return true;
        }
        next = error.source();
    }
    ember_vmm::is_exhausted(error)
}

fn load(plan: &Plan, path: &Path) -> Result<Inner, Error> {
    let loaded = file::read(path).map_err(|error| read_error(path, error))?;
    let fixture = plan.fixture(loaded.origin.clone());
    let overlay = plan.prepared.overlay.as_ref();
    loaded.into_inner(fixture, overlay.map(|it| it.directory.as_path()))
}

/// Waits for the right to build the template.
async fn claim(store: &Store, key: &Key, progress: &Progress) -> Result<Claim, StoreError> {
    if let Some(claim) = store.try_claim(key.as_str())? {
        return Ok(claim);
    }
    // Not in a blocking call, which nobody could end: whoever builds may take long.
    let wait = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(claim) = store.try_claim(key.as_str())? {
                return Ok(claim);
            }
        }
    };
    progress
        .during("wait for another who builds this template", wait)
        .await
}

/// Puts the template into the store. It is none the worse if that fails.
async fn keep(inner: Inner, claim: Claim, progress: &Progress) -> Result<Inner, Error> {
    let save = blocking("saving a template", move || {
        let saved = claim.begin().map_err(store_error).and_then(|entry| {
            file::write(&inner, &entry.join(FILE), Form::Whole)?;
            claim.finish().map_err(store_error)
        });
        if let Ok(entry) = &saved {
            inner.memory.moved_to(entry.join(FILE));
        }
        Ok((inner, saved.map(drop)))
    });
    let mut kept = None;
    let saved = progress
        .during("save the template", async {
            let (inner, saved) = save.await?;
            kept = Some(inner);
            saved
        })
        .await;
    match (kept, saved) {
        (Some(inner), Ok(())) => Ok(inner),
        (Some(inner), Err(error)) => {
            progress.notice(&not_kept(&error));
            Ok(inner)
        }
        (None, saved) => Err(saved
            .err()
            .unwrap_or_else(|| Error::new(ErrorKind::Internal, "saving a template lost it"))),
    }
}

fn store_error(error: StoreError) -> Error {
    let message = "cannot write to the cache of templates";
    Error::because(ErrorKind::Unprepared, message, error)
}

fn not_kept(error: &dyn std::error::Error) -> String {
    format!(
        "the template is not kept, and has to be built again next time: {}",
        chain_of(error)
    )
}
