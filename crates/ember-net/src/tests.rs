use std::collections::HashSet;

use crate::MacAddress;
use crate::tap::check_name;

#[test]
fn random_addresses_are_local_and_differ() {
    let addresses: HashSet<_> = (0..1000)
        .map(|_| MacAddress::random_local().unwrap())
        .collect();
    // Two of a thousand would be equal by chance once in a hundred million runs.
    assert_eq!(addresses.len(), 1000);
    for address in addresses {
        assert_eq!(address.bytes()[0] & 0b11, 0b10, "{address}");
    }
}

#[test]
fn an_address_is_written_as_usual() {
    let address = MacAddress::new([2, 0, 0xab, 0xcd, 0xef, 1]);
    assert_eq!(address.to_string(), "02:00:ab:cd:ef:01");
    assert_eq!(format!("{address:?}"), "02:00:ab:cd:ef:01");
}

#[test]
fn names_are_those_of_interfaces() {
    for good in ["a", "ember0", "tap-1.2_3", "abcdefghijklmno"] {
        check_name(good).unwrap();
    }
    for bad in [
        "",
        "abcdefghijklmnop",
        "a/b",
        "a b",
        "a:1",
        "tap%d",
        ".",
        "..",
        "n\0",
        "na\u{ef}ve",
    ] {
        let message = check_name(bad).unwrap_err().to_string();
        assert!(message.contains(&format!("{bad:?}")), "{message}");
    }
}
