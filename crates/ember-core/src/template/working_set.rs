//! What a clone touches before it answers, and to run its first program if an interpreter is kept
//! warm in it: recorded once, by clones that are made for it.

use std::sync::Arc;

use ember_snapshot::memory::MemoryImage;
use ember_snapshot::{HUGE_PAGE_BYTES, PAGE_SIZE, PageRun, PageSet, WorkingSet};
use ember_worker::host::Pages;

use super::Inner;
use super::options::ForkOptions;
use super::shell::Shell;
use crate::backing::Backing;
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
    let recorded = WorkingSet { written, read };
    let (image, backing) = (template.memory.image(), template.fixture.memory.backing);
    template.ahead = ahead(image, backing, Some(&recorded))?;
    template.working_set = Some(recorded);
    Ok(template)
}

/// Puts `memory` into the form that `backing` asks for, and gives what is best brought in ahead.
pub(super) fn ahead(
    memory: &MemoryImage,
    backing: Backing,
    touched: Option<&WorkingSet>,
) -> Result<Option<WorkingSet>, Error> {
    match backing {
        Backing::Mapped => {}
        Backing::HugePages => {
            memory.use_huge_pages().map_err(|error| {
                let message = "cannot put a template's memory into huge pages";
                Error::because(ErrorKind::HostUnsupported, message, error)
            })?;
        }
        // Each page is a message to the pager.
        Backing::OnDemand { .. } => return Ok(touched.cloned()),
    }
    Ok(touched.map(|touched| share_in_huge_pages(memory, touched)))
}

/// A part of memory is worth a huge page if clones read so many of its pages.
const WORTHWHILE: u64 = 8;

/// Puts what all clones read and none writes to, their kernel's code above all, into huge pages of
/// the memory that they share: to map 2 MiB takes as long as to map a page. Gives the working set
/// with these in whole, as it is best brought in ahead.
fn share_in_huge_pages(memory: &MemoryImage, touched: &WorkingSet) -> WorkingSet {
    let pages = HUGE_PAGE_BYTES / PAGE_SIZE;
    let mut read = touched.read.clone();
    for unit in 0..memory.bytes() / HUGE_PAGE_BYTES {
        let Some(whole) = PageRun::new(unit * pages, pages) else {
            continue;
        };
        let within = |set: &PageSet| -> u64 {
            let runs = set.runs().iter();
            runs.filter_map(|run| run.intersection(&whole))
                .map(|run| run.pages())
                .sum()
        };
        if within(&touched.written) > 0 || within(&touched.read) < WORTHWHILE {
            continue;
        }
        match memory.use_huge_pages_for(&PageSet::from_iter([whole])) {
            Ok(_) => read.insert(whole),
            Err(error) => {
                tracing::debug!(%error, "a template is not in huge pages");
                break;
            }
        }
    }
    WorkingSet {
        read,
        written: touched.written.clone(),
    }
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
