//! What a pool says about itself.

/// How many members of a pool are where, at one moment, and what became of those before.
///
/// Every member that was made is somewhere: `made == ready + busy + ending + ended + taken`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Ready to be handed out.
    pub ready: usize,
    /// Handed out.
    pub busy: usize,
    /// Being made.
    pub making: usize,
    /// Being destroyed.
    pub ending: usize,
    /// Callers that wait for a member.
    pub waiting: usize,
    /// Members that were made, ever.
    pub made: u64,
    /// Attempts to make a member that failed, ever.
    pub failed: u64,
    /// Ready members that were given up because another pool had more need of their memory, ever.
    pub evicted: u64,
    /// Ready members that were found dead, ever.
    pub unhealthy: u64,
    /// Ready members that were given up because nobody asked for any, ever.
    pub shrunk: u64,
    /// Callers that were refused because too many waited, ever.
    pub refused: u64,
    /// Callers whose deadline came before a member, ever.
    pub expired: u64,
    /// Members destroyed, ever.
    pub ended: u64,
    /// Members that callers have made their own, ever.
    pub taken: u64,
}
