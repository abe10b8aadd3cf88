//! The processor side of a VM, taken out of KVM and put back into it.
//!
//! The orders are those that the kernel's interfaces ask for; where one matters, the place says
//! why. Taking: `save`. Checking against this host, once for each state: `prepare`. Putting
//! back, once for each clone: `restore`.

mod prepare;
mod requirements;
mod restore;
mod save;
mod structure;
#[cfg(test)]
mod tests;
mod xsave;

pub(crate) use prepare::{PreparedChips, PreparedVcpu, prepare};
use requirements::Unsupported;
pub(crate) use restore::{restore_chips, restore_clock, restore_time, restore_vcpu};
pub(crate) use save::{VcpuFeatures, save_chips, save_clock, save_vcpu, vcpu_features};

/// The time stamp counter.
const MSR_IA32_TSC: u32 = 0x10;
/// When the local interrupt controller's timer fires, in units of the time stamp counter.
const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;

/// A state cannot be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// This host lacks something that the guest was told it has.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The state itself makes no sense.
    #[error("the saved state is not one of a VM: {0}")]
    Invalid(String),
    /// KVM refused a step.
    #[error(transparent)]
    Kvm(#[from] super::SetupError),
}
