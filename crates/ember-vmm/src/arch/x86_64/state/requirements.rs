//! What a saved guest needs of the processor it is to run on.

use ember_snapshot::state::CpuidEntry;
use kvm_bindings::CpuId;

/// This host cannot run a guest that was saved elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    /// The guest was told of a processor feature that the host's KVM does not offer.
    #[error(
        "the guest was started with the processor feature {name} ({place}), which this host's KVM \
         does not offer; restore it on a host that has it, or build the template here"
    )]
    Feature {
        /// Its usual name.
        name: &'static str,
        /// Its place: CPUID leaf, register and bit.
        place: String,
    },
    /// The guest has more extended registers than the host.
    #[error(
        "the guest has {needed} bytes of extended registers and this host's KVM has room for \
         {available}; restore it on a host with the same vector extensions"
    )]
    ExtendedState {
        /// What the guest has.
        needed: usize,
        /// What the host has.
        available: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, values: [u32; 4]) -> u32 {
        let [eax, ebx, ecx, edx] = values;
        match self {
            Self::Eax => eax,
            Self::Ebx => ebx,
            Self::Ecx => ecx,
            Self::Edx => edx,
        }
    }
}

/// The registers that consist of feature bits (Intel SDM volume 2A, CPUID; AMD APM volume 3,
/// appendix E; KVM's own: kernel `Documentation/virt/kvm/x86/cpuid.rst`), and the bits in them that
/// say something else or that the monitor sets by itself.
const FEATURES: [(u32, u32, Register, u32); 14] = [
    // Not: the deadline timer and the hypervisor bit, which are set for every guest, and whether
    // the guest uses XSAVE (OSXSAVE).
    (0x1, 0, Register::Ecx, 1 << 24 | 1 << 31 | 1 << 27),
    // Not: that there are several processors, and the processor's own APIC bit.
    (0x1, 0, Register::Edx, 1 << 28 | 1 << 9),
    (0x7, 0, Register::Ebx, 0),
    // Not: OSPKE, which says what the guest does.
    (0x7, 0, Register::Ecx, 1 << 4),
    (0x7, 0, Register::Edx, 0),
    (0x7, 1, Register::Eax, 0),
    (0xd, 0, Register::Eax, 0),
    (0xd, 1, Register::Eax, 0),
    (0x4000_0001, 0, Register::Eax, 0),
    (0x8000_0001, 0, Register::Ecx, 0),
    (0x8000_0001, 0, Register::Edx, 1 << 9),
    (0x8000_0007, 0, Register::Edx, 0),
    (0x8000_0008, 0, Register::Ebx, 0),
    (0x8000_0021, 0, Register::Eax, 0),
];

/// Names of features that hosts commonly differ in.
const NAMES: [(u32, u32, char, u8, &str); 40] = [
    (0x1, 0, 'c', 0, "sse3"),
    (0x1, 0, 'c', 1, "pclmulqdq"),
    (0x1, 0, 'c', 9, "ssse3"),
    (0x1, 0, 'c', 12, "fma"),
    (0x1, 0, 'c', 13, "cmpxchg16b"),
    (0x1, 0, 'c', 17, "pcid"),
    (0x1, 0, 'c', 19, "sse4.1"),
    (0x1, 0, 'c', 20, "sse4.2"),
    (0x1, 0, 'c', 21, "x2apic"),
    (0x1, 0, 'c', 22, "movbe"),
    (0x1, 0, 'c', 23, "popcnt"),
    (0x1, 0, 'c', 25, "aes"),
    (0x1, 0, 'c', 26, "xsave"),
    (0x1, 0, 'c', 28, "avx"),
    (0x1, 0, 'c', 29, "f16c"),
    (0x1, 0, 'c', 30, "rdrand"),
    (0x7, 0, 'b', 0, "fsgsbase"),
    (0x7, 0, 'b', 3, "bmi1"),
    (0x7, 0, 'b', 5, "avx2"),
    (0x7, 0, 'b', 7, "smep"),
    (0x7, 0, 'b', 8, "bmi2"),
    (0x7, 0, 'b', 9, "erms"),
    (0x7, 0, 'b', 10, "invpcid"),
    (0x7, 0, 'b', 16, "avx512f"),
    (0x7, 0, 'b', 18, "rdseed"),
    (0x7, 0, 'b', 19, "adx"),
    (0x7, 0, 'b', 20, "smap"),
    (0x7, 0, 'b', 23, "clflushopt"),
    (0x7, 0, 'b', 24, "clwb"),
    (0x7, 0, 'b', 29, "sha_ni"),
    (0x7, 0, 'c', 2, "umip"),
    (0x7, 0, 'c', 3, "pku"),
    (0x7, 0, 'c', 16, "la57"),
    (0x7, 0, 'd', 4, "fsrm"),
    (0x7, 0, 'd', 24, "amx-tile"),
    (0x7, 0, 'd', 26, "spec_ctrl"),
    (0x7, 0, 'd', 31, "ssbd"),
    (0x8000_0001, 0, 'c', 2, "svm"),
    (0x8000_0001, 0, 'd', 26, "1 GiB pages"),
    (0x8000_0001, 0, 'd', 27, "rdtscp"),
];

/// Whether a host that supports `supported` can run a guest that was told `needed`.
pub(super) fn check(supported: &CpuId, needed: &[CpuidEntry]) -> Result<(), Unsupported> {
    for (function, index, register, ignored) in FEATURES {
        let wanted = needed
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .map_or(0, |entry| {
                register.of([entry.eax, entry.ebx, entry.ecx, entry.edx])
            });
        let offered = supported
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .map_or(0, |entry| {
                register.of([entry.eax, entry.ebx, entry.ecx, entry.edx])
            });
        let missing = wanted & !offered & !ignored;
        if missing != 0 {
            return Err(unsupported(function, index, register, missing));
        }
    }
    Ok(())
}

fn unsupported(function: u32, index: u32, register: Register, missing: u32) -> Unsupported {
    let bit = missing.trailing_zeros();
    let letter = match register {
        Register::Eax => 'a',
        Register::Ebx => 'b',
        Register::Ecx => 'c',
        Register::Edx => 'd',
    };
    let name = NAMES
        .iter()
        .find(|(leaf, sub, in_register, at, _)| {
            (*leaf, *sub, *in_register, u32::from(*at)) == (function, index, letter, bit)
        })
        .map_or("without a common name", |(.., name)| name);
    Unsupported::Feature {
        name,
        place: format!(
            "CPUID {function:#x}.{index}, E{}X bit {bit}",
            letter.to_ascii_uppercase()
        ),
    }
}
