//! What a pool keeps.

use std::future::Future;

use crate::error::Error;

/// Makes, examines and destroys the members of a pool.
pub(crate) trait Supply: Send + Sync + 'static {
    /// A member.
    type Item: Send + 'static;

    /// Makes a member. Several are made at once, each in a task of its own; a pool that is dropped
    /// with its runtime drops the future half-way.
    fn make(&self) -> impl Future<Output = Result<Self::Item, Error>> + Send;

    /// Whether a member that is ready can still be handed out. Called at every hand-out and for all
    /// members now and then, with the pool's lock held: it must be cheap, must not block, and must
    /// not call the pool.
    fn is_healthy(&self, item: &Self::Item) -> bool;

    /// The bytes that the next member counts for in a shared [`Budget`](super::Budget).
    fn cost_bytes(&self) -> u64;

    /// Destroys a member and returns when what it held is free. May block: it is called on a thread
    /// for such work.
    fn discard(&self, item: Self::Item);
}
