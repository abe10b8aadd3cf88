//! KVM tests run where KVM is real, so the probe must say so there.

use ember_vmm::probe::{Verdict, probe};

#[test]
fn kvm_is_real_where_kvm_tests_run() {
    let verdict = probe();
    assert!(matches!(verdict, Verdict::Real { .. }), "{verdict}");
}
