//! What the guest's processors say they are: what KVM offers, with each vCPU's place in the
//! topology filled in. The guest sees one socket with one core for each vCPU.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX: the local interrupt controller's timer can be set to a deadline. KVM's can, and the
/// guest needs it: there is no PIT to calibrate another timer against.
const TSC_DEADLINE_TIMER: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor, whose leaves begin at 0x4000_0000.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HYPER_THREADING: u32 = 1 << 28;
/// Leaves 0xb and 0x1f, ECX: the kind of a topology level.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The CPUID of vCPU `index` of `vcpus`, from what the host supports.
///
/// Sources: Intel SDM volume 2A (CPUID), AMD APM volume 3 appendix E.
pub(crate) fn for_vcpu(supported: &CpuId, index: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let id = u32::from(index);
    let count = u32::from(vcpus);
    let id_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (count << 16) | (id << 24);
                entry.ecx |= HYPERVISOR | TSC_DEADLINE_TIMER;
                set(&mut entry.edx, HYPER_THREADING, vcpus > 1);
            }
            // Deterministic cache parameters, Intel. Bits 31-26: cores in the package, minus one.
            // Bits 25-14: threads that share this cache, minus one; the last level is shared by all.
            0x4 => {
                let level = (entry.eax >> 5) & 0b111;
                let sharing = if level >= 3 { count - 1 } else { 0 };
                if entry.eax & 0x1f != 0 {
                    entry.eax = (entry.eax & 0x3fff) | ((count - 1) << 26) | (sharing << 14);
                }
            }
            0xb | 0x1f => topology_level(entry, id, count, id_bits),
            // AMD: number of cores minus one, and how many bits of the id tell them apart.
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (id_bits << 12) | (count - 1);
            }
            // AMD cache topology, as leaf 4.
            0x8000_001d => {
                let level = (entry.eax >> 5) & 0b111;
                let sharing = if level >= 3 { count - 1 } else { 0 };
                if entry.eax & 0x1f != 0 {
                    entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
                }
            }
            // AMD: extended id, then core id with one thread a core, then one node.
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}

fn topology_level(entry: &mut kvm_cpuid_entry2, id: u32, count: u32, id_bits: u32) {
    entry.edx = id;
    entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, LEVEL_THREAD << 8),
        1 => (id_bits, count, (LEVEL_CORE << 8) | 1),
        index => (0, 0, index),
    };
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(0x1, 0, 0),
            entry(0x4, 0, 0b001_00001),
            entry(0x4, 3, 0b011_00011),
            entry(0xb, 0, 0),
            entry(0xb, 1, 0),
            entry(0x8000_0008, 0, 0x3030),
            entry(0x8000_001e, 0, 0),
        ])
        .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id_everywhere() {
        for vcpus in [1, 2, 3, 4, 32] {
            for index in 0..vcpus {
                let cpuid = for_vcpu(&supported(), index, vcpus);
                let leaf = |function, index| {
                    *cpuid
                        .as_slice()
                        .iter()
                        .find(|entry| entry.function == function && entry.index == index)
                        .unwrap()
                };
                let id = u32::from(index);
                let count = u32::from(vcpus);
                assert_eq!(leaf(1, 0).ebx >> 24, id);
                assert_eq!((leaf(1, 0).ebx >> 16) & 0xff, count);
                assert_ne!(leaf(1, 0).ecx & HYPERVISOR, 0);
                assert_eq!(leaf(1, 0).edx & HYPER_THREADING != 0, vcpus > 1);
                assert_eq!(leaf(4, 0).eax >> 26, count - 1);
                assert_eq!((leaf(4, 3).eax >> 14) & 0xfff, count - 1);
                assert_eq!(leaf(0xb, 0).edx, id);
                assert_eq!(leaf(0xb, 1).ebx, count);
                assert!(count <= 1 << leaf(0xb, 1).eax);
                assert_eq!(leaf(0x8000_0008, 0).ecx & 0xff, count - 1);
                assert_eq!(leaf(0x8000_001e, 0).eax, id);
            }
        }
    }
}
