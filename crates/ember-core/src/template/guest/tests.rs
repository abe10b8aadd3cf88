use proptest::prelude::*;

use super::*;
use crate::Compiler;

fn guest() -> Guest {
    Guest {
        agent: Agent {
            min_version: 2,
            version: 2,
            features: 7,
            software: "ember".to_owned(),
        },
        image: b"/a".to_vec(),
        languages: vec![Language {
            name: "python".to_owned(),
            extensions: vec!["py".to_owned()],
            interpreter: vec!["python3".to_owned()],
            inline: Some("-c".to_owned()),
            compile: Some(Compiler {
                command: vec!["cc".to_owned()],
                output: "out".to_owned(),
                into: None,
            }),
            runner: vec!["warm".to_owned()],
            session: vec!["drive".to_owned()],
            warm_up: Some("1".to_owned()),
            aliases: vec!["py".to_owned()],
            package: Some("python3".to_owned()),
            version: Some("3.11".to_owned()),
        }],
        account: Account {
            user: "user".to_owned(),
            home: "/home/user".to_owned(),
        },
        config: ImageConfig {
            entry_point: vec!["/e".to_owned()],
            arguments: vec!["a".to_owned()],
            environment: vec![("N".to_owned(), "v".to_owned())],
            user: Some("u".to_owned()),
            directory: Some("/d".to_owned()),
        },
        timeout: Some(Duration::from_millis(1500)),
        output_limit: 1 << 20,
        runners: vec!["python".to_owned()],
        volumes: vec![Volume {
            place: b"/v".to_vec(),
            file: b"/f".to_vec(),
        }],
        has_overlay_disk: true,
    }
}

/// Templates on disk have this: do not just update it, but raise `VERSION`.
const GOLDEN: &[u8] = b"\x06\0\
    \x02\x02\x07\x05ember\
    \x02/a\
    \x01\x06python\x01\x02py\x01\x02py\x01\x07python3\x01\x043.11\x01\x07python3\
    \x01\x02-c\x01\x01\x02cc\x03out\0\x01\x04warm\x01\x05drive\x01\x011\
    \x04user\x0a/home/user\
    \x01\x02/e\x01\x01a\x01\x01N\x01v\x01\x01u\x01\x02/d\
    \x01\x01\x80\xca\xb5\xee\x01\
    \x80\x80\x40\
    \x01\x06python\
    \x01\x02/v\x02/f\
    \x01";

#[test]
fn the_section_is_written_as_it_always_was() {
    assert_eq!(guest().encode().unwrap(), GOLDEN);
    assert_eq!(Guest::decode(GOLDEN).unwrap(), guest());
}

#[test]
fn what_is_no_section_is_refused() {
    for length in 0..GOLDEN.len() {
        Guest::decode(&GOLDEN[..length]).unwrap_err();
    }
    let longer = [GOLDEN, b"\0"].concat();
    assert!(matches!(
        Guest::decode(&longer),
        Err(GuestError::Damaged(None))
    ));
    let other = [b"\x07\0", &GOLDEN[2..]].concat();
    assert!(matches!(
        Guest::decode(&other),
        Err(GuestError::Version { found: 7 })
    ));
    assert!(matches!(
        Guest::decode(&vec![1; LIMIT + 1]),
        Err(GuestError::TooLarge(_))
    ));

    let mut guest = guest();
    guest.volumes = vec![guest.volumes[0].clone(); MAX_VOLUMES];
    Guest::decode(&guest.encode().unwrap()).unwrap();
    guest.volumes.push(guest.volumes[0].clone());
    assert!(matches!(
        Guest::decode(&guest.encode().unwrap()),
        Err(GuestError::Volumes(9))
    ));
    guest.volumes.clear();

    // An agent that speaks only what this host does not.
    (guest.agent.min_version, guest.agent.version) = (u16::MAX - 1, u16::MAX);
    let error = Guest::decode(&guest.encode().unwrap()).unwrap_err();
    assert!(matches!(error, GuestError::Agent(_)), "{error}");
    guest.agent.software = "x".repeat(LIMIT);
    assert!(matches!(guest.encode(), Err(GuestError::TooLarge(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes = [&VERSION.to_le_bytes(), bytes.as_slice()].concat();
        let _ = Guest::decode(&bytes);
    }
}
