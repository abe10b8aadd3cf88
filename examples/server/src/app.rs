//! What all requests have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::ApiError;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::packs::{Pack, Packs};
use crate::sandboxes::Sandboxes;

/// What all requests have in common.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) keys: Keys,
    pub(crate) packs: Packs,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) metrics: Arc<Metrics>,
    ending: AtomicBool,
}

/// The same, for everybody.
pub(crate) type Shared = Arc<App>;

impl App {
    pub(crate) fn new(options: Options, keys: Keys, packs: Packs) -> Self {
        Self {
            options,
            keys,
            packs,
            sandboxes: Sandboxes::default(),
            metrics: Arc::new(Metrics::new()),
            ending: AtomicBool::new(false),
        }
    }

    /// A language by any name that it has, with its pack.
    pub(crate) fn find(&self, language: &str) -> Result<(&Arc<Pack>, String), ApiError> {
        self.packs.find(language).ok_or_else(|| {
            let known = self.packs.known();
            // The words that emberd has for it, and the list.
            let message = format!("unknown language pack: {language:?}; there are: {known}");
            ApiError::bad_request(message)
        })
    }

    /// Takes no more requests.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}
