use ember_snapshot::state::{CpuidEntry, Msr};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::prepare::{changed_msrs, differs, time_msrs};
use super::requirements::{Unsupported, check};
use super::{MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE};

fn msr(index: u32, value: u64) -> Msr {
    Msr { index, value }
}

#[test]
fn only_what_differs_from_a_new_vcpu_is_written() {
    let saved = [
        msr(MSR_IA32_TSC, 1000),
        msr(0x174, 16),
        msr(0x175, 0),
        msr(0x277, 7),
        msr(MSR_IA32_TSC_DEADLINE, 2000),
    ];
    let usual = [msr(MSR_IA32_TSC, 1), msr(0x174, 0), msr(0x175, 0)];
    let changed: Vec<_> = changed_msrs(&saved, &usual)
        .iter()
        .map(|entry| (entry.index, entry.data))
        .collect();
    assert_eq!(changed, [(0x174, 16), (0x277, 7)]);
}

#[test]
fn the_deadline_comes_after_the_counter_and_is_never_none() {
    let values = |deadline, uses_deadline| -> Vec<_> {
        let saved = [
            msr(MSR_IA32_TSC_DEADLINE, deadline),
            msr(MSR_IA32_TSC, 1000),
        ];
        time_msrs(&saved, uses_deadline)
            .iter()
            .map(|entry| (entry.index, entry.data))
            .collect()
    };
    let tsc = (MSR_IA32_TSC, 1000);
    assert_eq!(values(2000, true), [tsc, (MSR_IA32_TSC_DEADLINE, 2000)]);
    assert_eq!(values(0, true), [tsc, (MSR_IA32_TSC_DEADLINE, 1000)]);
    assert_eq!(values(2000, false), [tsc]);
}

#[test]
fn a_clock_is_scaled_only_if_it_is_far_off() {
    assert!(!differs(2_000_000, 2_000_400));
    assert!(differs(2_000_000, 2_000_600));
    assert!(differs(2_000_000, 1_000_000));
    assert!(!differs(2_000_000, 0));
}

fn leaf(function: u32, ebx: u32, ecx: u32) -> CpuidEntry {
    CpuidEntry {
        function,
        index: 0,
        flags: 0,
        eax: 0,
        ebx,
        ecx,
        edx: 0,
    }
}

#[test]
fn a_missing_feature_is_named() {
    let host = CpuId::from_entries(&[
        kvm_cpuid_entry2 {
            function: 1,
            ecx: 1 << 20,
            ..Default::default()
        },
        kvm_cpuid_entry2 {
            function: 7,
            ebx: 1 << 5,
            ..Default::default()
        },
    ])
    .unwrap();
    // What the monitor sets by itself is not asked of the host.
    assert_eq!(
        check(&host, &[leaf(1, 0, 1 << 20 | 1 << 24 | 1 << 31)]),
        Ok(())
    );
    assert_eq!(check(&host, &[leaf(7, 1 << 5, 0)]), Ok(()));
    let error = check(&host, &[leaf(7, 1 << 5 | 1 << 16, 0)]).unwrap_err();
    assert!(matches!(
        error,
        Unsupported::Feature {
            name: "avx512f",
            ..
        }
    ));
    assert!(
        error
            .to_string()
            .contains("avx512f (CPUID 0x7.0, EBX bit 16)"),
        "{error}"
    );
    // A leaf that the host has not at all has no features.
    assert!(check(&host, &[leaf(0x8000_0008, 1, 0)]).is_err());
}
