//! The extended registers: as many bytes as KVM says that a vCPU of this host has.
#![allow(
    unsafe_code,
    reason = "KVM reads and writes as much as it said, whatever the type says"
)]

use ember_snapshot::state::kvm_size;
use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::VcpuFd;
use serde_bytes::ByteBuf;
use zerocopy::{FromBytes, IntoBytes};

use super::super::{SetupError, failed};
use super::StateError;
use super::requirements::Unsupported;

/// Takes them out, `bytes` of them.
pub(super) fn save(vcpu: &VcpuFd, bytes: usize) -> Result<ByteBuf, SetupError> {
    let extra = bytes.saturating_sub(kvm_size::XSAVE_MIN).div_ceil(4);
    if extra == 0 {
        let xsave = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        return Ok(ByteBuf::from(xsave.as_bytes()));
    }
    let too_large = || SetupError {
        step: format!("an XSAVE area of {bytes} bytes"),
        source: kvm_ioctls::Error::new(nix::libc::ENOMEM),
    };
    let mut xsave = Xsave::new(extra).map_err(|_| too_large())?;
    // SAFETY: the area is as large as KVM_CAP_XSAVE2 says, which is how much KVM writes.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(failed("KVM_GET_XSAVE2"))?;
    let mut all = xsave.as_fam_struct_ref().xsave.as_bytes().to_vec();
    all.extend_from_slice(xsave.as_slice().as_bytes());
    Ok(ByteBuf::from(all))
}

/// Brings saved ones into the form of a host that has `host_bytes` of them.
pub(super) fn prepare(bytes: &[u8], host_bytes: usize) -> Result<Xsave, StateError> {
    if bytes.len() > host_bytes {
        return Err(Unsupported::ExtendedState {
            needed: bytes.len(),
            available: host_bytes,
        }
        .into());
    }
    let Some((fixed, extra)) = bytes.split_at_checked(kvm_size::XSAVE_MIN) else {
        return Err(StateError::Invalid(format!(
            "its extended registers have {} bytes",
            bytes.len()
        )));
    };
    let invalid = || StateError::Invalid("its extended registers cannot be".to_owned());
    let words = host_bytes.saturating_sub(kvm_size::XSAVE_MIN).div_ceil(4);
    let mut xsave = Xsave::new(words).map_err(|_| invalid())?;
    let parsed = kvm_xsave::read_from_bytes(fixed).map_err(|_| invalid())?;
    for (to, from) in xsave.as_mut_slice().iter_mut().zip(extra.chunks(4)) {
        let mut word = [0; 4];
        word[..from.len()].copy_from_slice(from);
        *to = u32::from_ne_bytes(word);
    }
    // SAFETY: the length of the area, which is what must not change, is left alone.
    let area = unsafe { xsave.as_mut_fam_struct() };
    area.xsave.region = parsed.region;
    Ok(xsave)
}

/// Puts them back.
pub(super) fn restore(vcpu: &VcpuFd, xsave: &Xsave) -> Result<(), SetupError> {
    // SAFETY: the area is as large as this host's KVM reads: it was made with the size that
    // KVM_CAP_XSAVE2 gives.
    unsafe { vcpu.set_xsave2(xsave) }.map_err(failed("KVM_SET_XSAVE"))
}
