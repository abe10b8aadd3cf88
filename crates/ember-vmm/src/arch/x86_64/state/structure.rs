//! KVM's structures as bytes, and back.

use ember_snapshot::state::{KvmBytes, kvm_size};
use kvm_bindings::{
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use zerocopy::{Immutable, IntoBytes, TryFromBytes};

use super::StateError;

// The sizes are part of the file format, where KVM's definitions cannot be seen.
const _: () = {
    assert!(size_of::<kvm_regs>() == kvm_size::REGS);
    assert!(size_of::<kvm_sregs>() == kvm_size::SREGS);
    assert!(size_of::<kvm_xcrs>() == kvm_size::XCRS);
    assert!(size_of::<kvm_debugregs>() == kvm_size::DEBUGREGS);
    assert!(size_of::<kvm_lapic_state>() == kvm_size::LAPIC);
    assert!(size_of::<kvm_vcpu_events>() == kvm_size::EVENTS);
    assert!(size_of::<kvm_irqchip>() == kvm_size::IRQCHIP);
    assert!(size_of::<kvm_xsave>() == kvm_size::XSAVE_MIN);
};

/// The bytes of `structure`, whose size is `N` by the assertions above.
pub(super) fn to_bytes<T: IntoBytes + Immutable, const N: usize>(structure: &T) -> KvmBytes<N> {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(structure.as_bytes()) {
        *to = *from;
    }
    KvmBytes::new(bytes)
}

/// The structure with these bytes.
pub(super) fn from_bytes<T: TryFromBytes, const N: usize>(
    bytes: &KvmBytes<N>,
    what: &str,
) -> Result<T, StateError> {
    T::try_read_from_bytes(bytes.as_bytes())
        .map_err(|_| StateError::Invalid(format!("its {what} cannot be")))
}
