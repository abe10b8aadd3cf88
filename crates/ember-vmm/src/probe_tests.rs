use super::*;

#[test]
fn every_verdict_but_real_says_what_to_do() {
    let elapsed = Duration::from_millis(70);
    let verdicts = [
        Verdict::Emulated {
            elapsed: Some(elapsed),
        },
        Verdict::Emulated { elapsed: None },
        Verdict::Absent,
        Verdict::Forbidden,
        Verdict::Unusable {
            reason: "x".to_owned(),
        },
    ];
    for verdict in verdicts {
        assert!(!verdict.is_real());
        assert!(verdict.advice().is_some(), "{verdict}");
    }
    let real = Verdict::Real {
        elapsed: Duration::from_micros(30),
    };
    assert!(real.is_real() && real.advice().is_none());
    assert_eq!(
        real.to_string(),
        "real: a loop of 50000 turns in a guest's kernel mode took 0.03 ms"
    );
}

#[test]
fn the_loop_jumps_back_to_its_start() {
    // jnz rel8 counts from its own end.
    let offset = i8::from_le_bytes([CODE[4]]);
    assert_eq!(5 + isize::from(offset), 0);
}
