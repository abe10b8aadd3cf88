//! Programs for runners that cannot be.

use super::*;

#[test]
fn programs_for_runners_that_cannot_be_say_why() {
    let refused = |message: &Message<'_>| {
        let mut out = vec![];
        let Err(EncodeError::Warm(error)) = message.encode(1, &mut out) else {
            panic!()
        };
        (error.code(), error.to_string())
    };
    let run = |warm| Message::Run(Cow::Owned(warm));
    let warm = |warm| Message::Warm(Cow::Owned(warm));
    for name in ["", "a b", &"x".repeat(MAX_RUNNER + 1)] {
        let runner = name.to_owned();
        let (code, message) = refused(&run(Warm {
            runner,
            ..program()
        }));
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(
            message.contains("cannot be the name of a runner"),
            "{message}"
        );
    }
    let (code, message) = refused(&run(Warm {
        code: vec![b' '; MAX_CODE + 1],
        ..program()
    }));
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(message.contains("the limit is 1048576"), "{message}");
    let (_, message) = refused(&run(Warm {
        code: vec![b' '],
        command: Spawn {
            argv: vec![b"x.py".to_vec()],
            ..Spawn::default()
        },
        ..program()
    }));
    assert!(message.contains("\"x.py\""), "{message}");
    let (_, message) = refused(&run(Warm {
        command: Spawn {
            user: b"root".to_vec(),
            ..program().command
        },
        ..program()
    }));
    assert!(message.contains("not as \"root\""), "{message}");
    let (_, message) = refused(&warm(Warm {
        command: Spawn {
            stdin: true,
            ..runner().command
        },
        ..runner()
    }));
    assert!(message.contains("cannot have standard input"), "{message}");
    let (code, _) = refused(&run(Warm {
        command: Spawn::default(),
        ..program()
    }));
    assert_eq!(code, ErrorCode::EmptyCommand);
}
