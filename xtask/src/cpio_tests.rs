use super::*;

#[test]
fn an_archive_is_laid_out_as_the_kernel_expects() {
    let mut archive = Archive::default();
    archive.directory("/bin");
    archive.file("bin/a", 0o755, b"hello");
    archive.symlink("bin/b", "a");
    let bytes = archive.finish();

    let mut at = 0;
    let mut seen = Vec::new();
    while at < bytes.len() {
        assert_eq!(at % 4, 0);
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |index: usize| {
            let start = at + 6 + index * 8;
            let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let (mode, size, name_size) = (field(1), field(6), field(11));
        let name = std::str::from_utf8(&bytes[at + 110..at + 110 + name_size - 1]).unwrap();
        let data = (at + 110 + name_size).next_multiple_of(4);
        seen.push((name.to_owned(), mode, bytes[data..data + size].to_vec()));
        at = (data + size).next_multiple_of(4);
    }
    let expected = [
        ("bin", 0o040_755, &b""[..]),
        ("bin/a", 0o100_755, b"hello"),
        ("bin/b", 0o120_777, b"a"),
        ("TRAILER!!!", 0, b""),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, mode, data)| ((*name).to_owned(), *mode, data.to_vec()))
        .collect();
    assert_eq!(seen, expected);
}
