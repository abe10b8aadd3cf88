use super::*;

/// The entry at the front of `bytes` as the kernel would read it, and what follows it.
fn entry(bytes: &[u8]) -> (String, Vec<u32>, &[u8], &[u8]) {
    assert_eq!(&bytes[..6], b"070701");
    let fields: Vec<u32> = bytes[6..110]
        .chunks(8)
        .map(|field| u32::from_str_radix(str::from_utf8(field).unwrap(), 16).unwrap())
        .collect();
    let name_end = 110 + fields[11] as usize;
    let name = str::from_utf8(&bytes[110..name_end - 1])
        .unwrap()
        .to_owned();
    assert_eq!(bytes[name_end - 1], 0);
    let data = name_end.next_multiple_of(4);
    let end = data + fields[6] as usize;
    (
        name,
        fields,
        &bytes[data..end],
        &bytes[end.next_multiple_of(4)..],
    )
}

#[test]
fn holds_what_was_put_in() {
    let mut archive = Archive::default();
    archive.directory("/dev", 0o755).unwrap();
    archive
        .character_device("/dev/console", 0o600, (5, 1))
        .unwrap();
    archive.file("/init", 0o755, &b"12345"[..]).unwrap();
    let bytes = archive
        .finish()
        .unwrap()
        .pieces()
        .collect::<Vec<_>>()
        .concat();
    assert_eq!(bytes.len() % 512, 0);

    let (name, fields, data, rest) = entry(&bytes);
    assert_eq!((name.as_str(), data), ("dev", &b""[..]));
    assert_eq!(fields[..5], [1, 0o040_755, 0, 0, 2]);
    let (name, fields, _, rest) = entry(rest);
    assert_eq!(name, "dev/console");
    assert_eq!((fields[1], fields[9], fields[10]), (0o020_600, 5, 1));
    let (name, fields, data, rest) = entry(rest);
    assert_eq!((name.as_str(), data), ("init", &b"12345"[..]));
    // No time and no owner: equal contents are equal bytes.
    assert_eq!(fields[..6], [3, 0o100_755, 0, 0, 1, 0]);
    let (name, _, _, rest) = entry(rest);
    assert_eq!(name, "TRAILER!!!");
    assert!(rest.iter().all(|byte| *byte == 0));
}
