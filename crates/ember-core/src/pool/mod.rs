//! Pools of sandboxes, and the engine behind them, whatever it is that it keeps.
//!
//! | module | what |
//! | --- | --- |
//! | [`sandboxes`] | what users see: clones of a template, kept ready |
//! | [`supply`] | what a pool keeps: how one is made, examined and destroyed |
//! | [`settings`] | how many, for how long, how fast |
//! | [`ledger`] | who is where: the state behind the one lock, without clocks, tasks or I/O |
//! | [`engine`] | the caller's side: taking a member, waiting for one, giving it back, the end |
//! | [`keeper`] | the task behind it: makes, examines, shrinks, destroys |
//! | [`budget`] | memory that several pools share |
//!
//! A member is handed out once: it goes from *making* to *ready* (or straight to who waits
//! longest), to *busy*, to *ending*, and never back. Only the keeper makes and destroys, so that a
//! caller pays for neither: what a caller does is to move a member in the ledger and to wake the
//! keeper.
//!
//! Locks: the budget's may be taken with a ledger's held, never the other way round, and neither is
//! held while a member is made, handed out or destroyed.

mod budget;
mod engine;
mod keeper;
mod ledger;
mod sandboxes;
mod settings;
mod status;
mod supply;

pub use budget::Budget;
pub(crate) use engine::{Engine, Pooled};
pub use sandboxes::{Pool, PoolBuilder, PoolFork, PooledSandbox};
pub(crate) use settings::Settings;
pub use status::PoolStatus;
pub(crate) use supply::Supply;

#[cfg(test)]
mod tests;
