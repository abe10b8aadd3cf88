//! What this host's processors are, as far as a saved guest can tell.

use std::fmt;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Error, Kvm};

/// The kind of processor that guests of this host get.
///
/// Two hosts with equal values can go on with each other's guests, as far as the processor matters;
/// of two that differ, one may be able to. Displays as what people call the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    vendor: String,
    signature: u32,
    features: Vec<u8>,
}

impl Processor {
    /// Asks KVM.
    ///
    /// # Errors
    /// If there is no usable `/dev/kvm`.
    pub fn of_host() -> Result<Self, Error> {
        let supported = Kvm::new()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(Self::from_cpuid(supported.as_slice()))
    }

    fn from_cpuid(entries: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function| entries.iter().find(|entry| entry.function == function);
        // CPUID, leaf 0: the vendor's name is in EBX, EDX, ECX.
        let vendor: Vec<u8> = leaf(0)
            .map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx])
            .into_iter()
            .flatten()
            .flat_map(u32::to_le_bytes)
            .collect();
        Self {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            signature: leaf(1).map_or(0, |leaf| leaf.eax),
            features: entries.iter().filter_map(features).flatten().collect(),
        }
    }

    /// The maker, as CPUID says it.
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    /// All features, as bytes that mean nothing but to be compared.
    pub fn features(&self) -> &[u8] {
        &self.features
    }
}

/// What an entry says of features, after what it is. Not what it says of the one processor that
/// happened to be asked (its APIC id), or of what its kernel has switched on.
fn features(entry: &kvm_cpuid_entry2) -> Option<Vec<u8>> {
    /// Leaf 1, ECX: the kernel uses XSAVE.
    const OSXSAVE: u32 = 1 << 27;
    /// Leaf 7, ECX: the kernel uses protection keys.
    const OSPKE: u32 = 1 << 4;
    let registers = match entry.function {
        1 => [entry.eax, 0, entry.ecx & !OSXSAVE, entry.edx],
        7 => [entry.eax, entry.ebx, entry.ecx & !OSPKE, entry.edx],
        // EBX is the size of what is switched on now.
        0xd => [entry.eax, 0, entry.ecx, entry.edx],
        0x14 | 0x19 | 0x1d | 0x1e | 0x24 | 0x8000_0001 | 0x8000_0021 | 0x4000_0001 => {
            [entry.eax, entry.ebx, entry.ecx, entry.edx]
        }
        0x8000_0008 => [entry.eax, entry.ebx, 0, 0],
        _ => return None,
    };
    let words = [entry.function, entry.index].into_iter().chain(registers);
    Some(words.flat_map(u32::to_le_bytes).collect())
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Intel SDM 3-217 (CPUID, leaf 1, EAX): the extended fields count for these families.
        let field = |shift: u32, mask: u32| self.signature >> shift & mask;
        let base = field(8, 0xf);
        let family = if base == 0xf {
            base + field(20, 0xff)
        } else {
            base
        };
        let model = match base {
            0x6 | 0xf => field(16, 0xf) << 4 | field(4, 0xf),
            _ => field(4, 0xf),
        };
        let stepping = field(0, 0xf);
        write!(
            f,
            "{} family {family} model {model} stepping {stepping}",
            self.vendor
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn milan(apic_id: u32, osxsave: u32) -> [kvm_cpuid_entry2; 3] {
        [
            entry(0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            entry(1, [0x00a0_0f11, apic_id << 24, 0x1000 | osxsave << 27, 7]),
            entry(0xb, [0, 0, 0, apic_id]),
        ]
    }

    #[test]
    fn a_processor_is_its_features_whichever_of_them_was_asked() {
        let processor = Processor::from_cpuid(&milan(0, 0));
        let name = "AuthenticAMD family 25 model 1 stepping 1";
        assert_eq!(processor.to_string(), name);
        assert_eq!(processor, Processor::from_cpuid(&milan(5, 1)));
        for register in 0..3 {
            let mut other = milan(0, 0);
            *[&mut other[1].eax, &mut other[1].ecx, &mut other[1].edx][register] ^= 0x100;
            assert_ne!(processor, Processor::from_cpuid(&other), "{register}");
        }
        assert_eq!(Processor::from_cpuid(&[]).vendor(), "");
    }
}
