use super::*;

fn built(kind: &str, target: &str, executable: &str) -> Built {
    Built {
        package: "p".to_owned(),
        target: target.to_owned(),
        kind: kind.to_owned(),
        executable: executable.into(),
        directory: "/w/p".into(),
    }
}

#[test]
fn a_suites_name_says_where_it_runs() {
    let kvm = built("test", "kvm_boot", "/t/debug/deps/kvm_boot-1");
    let stress = built("test", "stress_boot", "/t/debug/deps/stress_boot-1");
    let plain = built("test", "protocol", "/t/debug/deps/protocol-1");
    let library = built("lib", "kvm_boot", "/t/debug/deps/kvm_boot-2");
    assert!(needs_kvm(&kvm) && !is_stress(&kvm));
    assert!(needs_kvm(&stress) && is_stress(&stress));
    assert!(!needs_kvm(&plain) && !needs_kvm(&library));
}

#[test]
fn programs_that_tests_start_are_not_tests() {
    assert!(!is_test(&built("bin", "ember", "/t/debug/ember")));
    assert!(is_test(&built("bin", "ember", "/t/debug/deps/ember-1")));
}

#[test]
fn what_is_left_out_is_said() {
    assert!(Selection::default().left_out().is_empty());
    let selection = Selection {
        no_kvm: true,
        ..Selection::default()
    };
    assert_eq!(selection.left_out(), ["everything that needs KVM"]);
    let selection = Selection {
        filter: Some("x".to_owned()),
        ..Selection::default()
    };
    assert_eq!(selection.left_out().len(), 2);
}

#[test]
fn a_chosen_suite_excludes_the_others() {
    let selection = Selection {
        suite: vec!["kvm_a".to_owned()],
        ..Selection::default()
    };
    assert!(selection.wants(&built("test", "kvm_a", "/deps/a")));
    assert!(!selection.wants(&built("test", "kvm_b", "/deps/b")));
    assert!(Selection::default().wants(&built("test", "kvm_b", "/deps/b")));
}
