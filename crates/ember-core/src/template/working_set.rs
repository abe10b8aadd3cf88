//! What a clone touches before it answers, and to run its first program if an interpreter is kept
//! warm in it: recorded once, by clones that are made for it.

use std::sync::Arc;

use ember_snapshot::{PageSet, WorkingSet};
use ember_worker::host::Pages;

use super::Inner;
use super::options::ForkOptions;
use super::shell::Shell;
use crate::blocking::blocking;
use crate::code::Code;
use crate::error::{Error, ErrorKind};

/// What is done on threads that may wait.
const RECORDING: &str = "recording a working set";

/// `template` with its working set.
///
/// # Errors
/// If no clone of it answers: then it is no template.
pub(super) async fn recorded(template: Inner) -> Result<Inner, Error> {
    let template = Arc::new(template);
    let written = touched(&template, Pages::Mapped).await?;
    // Page by page, so that nothing is taken for touched that only was near.
    let paged = touched(&template, Pages::OnDemand { window: 1 }).await;
    let read = match paged {
        Ok(all) => all.difference(&written),
        // A host without userfaultfd: what is written is the larger part of it.
        Err(error) => {
            tracing::debug!(%error, "what clones read is not recorded");
            PageSet::new()
        }
    };
    let mut template = into_inner(template).await?;
    template.working_set = Some(WorkingSet { written, read });
    Ok(template)
}

/// What a clone with this memory has touched when it answers: written, or, where each page is
/// brought in when it is touched, all.
async fn touched(template: &Arc<Inner>, pages: Pages) -> Result<PageSet, Error> {
    let shared = Arc::clone(template);
    let make = move || {
        let place = shared.fixture.place.clone();
        Shell::placed(shared, place, pages)
    };
    let shell = blocking(RECORDING, make).await?;
    let sandbox = shell.start(ForkOptions::default()).await?;
    sandbox.ping().await?;
    // What a clone is for where an interpreter is kept warm in it.
    if let Some(language) = template.fixture.runners.first() {
        sandbox.run(Code::new(language, "")).await?;
    }
    let vm = sandbox.parts()?.vm;
    let pages = blocking(RECORDING, move || vm.touched_pages()).await;
    sandbox.close().await;
    pages
}

/// The clones that held it have ended.
async fn into_inner(template: Arc<Inner>) -> Result<Inner, Error> {
    Arc::into_inner(template)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a clone outlived its end"))
}
