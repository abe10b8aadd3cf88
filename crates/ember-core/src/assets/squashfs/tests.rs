use std::collections::BTreeMap;
use std::fs;

use super::*;

/// A reader of just what the writer writes, so that a test fails where they differ about the
/// format. That the kernel agrees is shown by the guests that boot from such images.
struct Image {
    bytes: Vec<u8>,
    inodes: usize,
    directories: usize,
    ids: Vec<u32>,
}

fn le<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

/// Inodes by path: (type, mode, user, group, bytes).
type Contents = BTreeMap<String, (u64, u64, u32, u32, Vec<u8>)>;

impl Image {
    fn open(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        assert_eq!(le::<4>(&bytes, 0), u64::from(MAGIC));
        assert_eq!(bytes.len() % 4096, 0);
        let used = le::<8>(&bytes, 40) as usize;
        assert!(used <= bytes.len() && bytes[used..].iter().all(|byte| *byte == 0));
        let mut image = Self {
            inodes: le::<8>(&bytes, 64) as usize,
            directories: le::<8>(&bytes, 72) as usize,
            ids: Vec::new(),
            bytes,
        };
        let index = le::<8>(&image.bytes, 48) as usize;
        // The kernel insists that the index fills the rest of the image.
        assert_eq!(index + 8, used);
        let count = le::<2>(&image.bytes, 26) as usize;
        let table = image.metadata(le::<8>(&image.bytes, index) as usize, 0, 4 * count);
        image.ids = table.chunks(4).map(|id| le::<4>(id, 0) as u32).collect();
        image
    }

    /// `length` bytes from `offset` in the metadata block at `at`.
    fn metadata(&self, mut at: usize, offset: usize, length: usize) -> Vec<u8> {
        let mut table = Vec::new();
        while table.len() < offset + length {
            let header = le::<2>(&self.bytes, at) as usize;
            let stored = &self.bytes[at + 2..at + 2 + (header & 0x7fff)];
            if header & 0x8000 == 0 {
                table.extend(lz4_flex::block::decompress(stored, 8192).unwrap());
            } else {
                table.extend_from_slice(stored);
            }
            at += 2 + (header & 0x7fff);
        }
        table[offset..offset + length].to_vec()
    }

    fn inode(&self, block: usize, offset: usize, length: usize) -> Vec<u8> {
        self.metadata(self.inodes + block, offset, length)
    }

    /// Everything below the inode at `reference`, by path.
    fn walk(&self, path: &str, reference: u64, into: &mut Contents) {
        let (block, offset) = ((reference >> 16) as usize, (reference & 0xffff) as usize);
        let head = self.inode(block, offset, 16);
        let kind = le::<2>(&head, 0);
        let contents = match kind {
            1 | 8 => {
                let (start, size, at) = if kind == 1 {
                    let rest = self.inode(block, offset, 32);
                    (le::<4>(&rest, 16), le::<2>(&rest, 24), le::<2>(&rest, 26))
                } else {
                    let rest = self.inode(block, offset, 40);
                    (le::<4>(&rest, 24), le::<4>(&rest, 20), le::<2>(&rest, 34))
                };
                let length = size as usize - 3;
                let listing = self.metadata(self.directories + start as usize, at as usize, length);
                self.list(path, &listing, into);
                Vec::new()
            }
            2 => self.contents(block, offset),
            9 => self.linked_contents(block, offset),
            3 => {
                let size = le::<4>(&self.inode(block, offset, 24), 20) as usize;
                self.inode(block, offset, 24 + size)[24..].to_vec()
            }
            other => panic!("{path}: inode type {other}"),
        };
        let user = self.ids[le::<2>(&head, 4) as usize];
        let group = self.ids[le::<2>(&head, 6) as usize];
        into.insert(
            path.to_owned(),
            (kind, le::<2>(&head, 2), user, group, contents),
        );
    }

    fn list(&self, path: &str, listing: &[u8], into: &mut Contents) {
        let mut at = 0;
        while at < listing.len() {
            let count = le::<4>(listing, at) + 1;
            assert!(count <= 256);
            let block = le::<4>(listing, at + 4);
            at += 12;
            for _ in 0..count {
                let offset = le::<2>(listing, at);
                let size = le::<2>(listing, at + 6) as usize + 1;
                let name = str::from_utf8(&listing[at + 8..at + 8 + size]).unwrap();
                self.walk(&format!("{path}/{name}"), block << 16 | offset, into);
                at += 8 + size;
            }
        }
    }

    fn contents(&self, block: usize, offset: usize) -> Vec<u8> {
        let fixed = self.inode(block, offset, 32);
        let mut at = le::<4>(&fixed, 16) as usize;
        let size = le::<4>(&fixed, 28) as usize;
        let blocks = size.div_ceil(BLOCK_SIZE);
        let inode = self.inode(block, offset, 32 + 4 * blocks);
        let mut data = Vec::new();
        for index in 0..blocks {
            let length = BLOCK_SIZE.min(size - data.len());
            let field = le::<4>(&inode, 32 + 4 * index) as usize;
            let stored = field & (STORED as usize - 1);
            let bytes = &self.bytes[at..at + stored];
            at += stored;
            if field == 0 {
                data.resize(data.len() + length, 0);
            } else if field & STORED as usize != 0 {
                data.extend_from_slice(bytes);
            } else {
                data.extend(lz4_flex::block::decompress(bytes, length).unwrap());
            }
        }
        assert_eq!(data.len(), size);
        data
    }
}

impl Image {
    /// Of a file of one block that has several names: how many these are, its number and its data.
    fn linked_contents(&self, block: usize, offset: usize) -> Vec<u8> {
        let inode = self.inode(block, offset, 60);
        let (start, size) = (le::<8>(&inode, 16) as usize, le::<8>(&inode, 24) as usize);
        let stored = le::<4>(&inode, 56) as usize & (STORED as usize - 1);
        let data = self.bytes[start..start + stored].to_vec();
        let (number, links) = (le::<4>(&inode, 12), le::<4>(&inode, 40));
        format!(
            "{number} {links} {size} {}",
            String::from_utf8(data).unwrap()
        )
        .into_bytes()
    }
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

fn written(root: &Entry) -> (Vec<u8>, Contents) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    write(root, &path).unwrap();
    let image = Image::open(&path);
    let mut all = BTreeMap::new();
    image.walk("", le::<8>(&image.bytes, 32), &mut all);
    assert_eq!(le::<4>(&image.bytes, 4) as usize, all.len(), "inodes");
    (image.bytes, all)
}

#[test]
fn files_of_every_shape_are_read_back() {
    let text = b"print(6 * 7)\n".repeat(30_000);
    let mut holes = noise(3 * BLOCK_SIZE);
    holes[BLOCK_SIZE..2 * BLOCK_SIZE].fill(0);
    let contents = [
        ("empty", Vec::new()),
        ("byte", vec![7]),
        ("zeros", vec![0; 5]),
        ("block", noise(BLOCK_SIZE)),
        ("block-and-byte", noise(BLOCK_SIZE + 1)),
        ("text", text),
        ("holes", holes),
    ];
    let mut root = Entry::directory(0o755);
    for (name, bytes) in &contents {
        let entry = Entry::of_root(0o640, Node::Bytes(bytes.clone()));
        root.insert(&format!("/d/{name}"), entry).unwrap();
    }
    let (image, all) = written(&root);
    for (name, bytes) in contents {
        let (kind, mode, user, group, data) = &all[&format!("/d/{name}")];
        assert_eq!((*kind, *mode, *user, *group), (2, 0o640, 0, 0));
        assert!(*data == bytes, "{name}");
    }
    assert_eq!(image, written(&root).0, "equal trees, equal images");
}

#[test]
fn owners_modes_and_links_are_kept() {
    let mut root = Entry::directory(0o755);
    let mut home = Entry::directory(0o1777);
    (home.user, home.group) = (1000, 1001);
    root.insert("/home", home).unwrap();
    root.insert(
        "/home/l",
        Entry::of_root(0o777, Node::Link(b"../x".to_vec())),
    )
    .unwrap();
    let (_, all) = written(&root);
    assert_eq!(all["/home"], (1, 0o1777, 1000, 1001, Vec::new()));
    assert_eq!(all["/home/l"], (3, 0o777, 0, 0, b"../x".to_vec()));
    assert_eq!(all[""].1, 0o755);
}

#[test]
fn names_of_one_file_are_one_inode() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = crate::assets::spool::Spool::new(directory.path()).unwrap();
    let mut spooled = |text: &str| Arc::new(spool.take(&mut text.as_bytes()).unwrap());
    let (shared, single) = (spooled("of two names"), spooled("of one"));
    spool.finish().unwrap();
    let mut root = Entry::directory(0o755);
    for (path, file) in [("/a", &shared), ("/d/b", &shared), ("/c", &single)] {
        let entry = Entry {
            modified: 7,
            ..Entry::of_root(0o644, Node::Spooled(Arc::clone(file)))
        };
        root.insert(path, entry).unwrap();
    }
    // Walked by name, it is counted twice; in the image it is there once.
    let path = directory.path().join("image");
    write(&root, &path).unwrap();
    let image = Image::open(&path);
    let mut all = BTreeMap::new();
    image.walk("", le::<8>(&image.bytes, 32), &mut all);
    assert_eq!((le::<4>(&image.bytes, 4), all.len()), (4, 5));
    assert_eq!(all["/a"].4, all["/d/b"].4);
    assert_eq!(all["/a"].4, b"2 2 12 of two names");
    assert_eq!(all["/c"].4, b"of one");
}

#[test]
fn a_directory_may_be_larger_than_any_block() {
    let mut root = Entry::directory(0o755);
    for number in 0..3000 {
        let name = format!("/many/{number:0>40}");
        let bytes = format!("{number}").into_bytes();
        root.insert(&name, Entry::of_root(0o644, Node::Bytes(bytes)))
            .unwrap();
    }
    // Numbered between the directory's first entry and its next: the difference of their inode
    // numbers does not fit an entry.
    for number in 0..33_000 {
        root.insert(&format!("/z/a/{number}"), Entry::directory(0o755))
            .unwrap();
    }
    root.insert("/z/b", Entry::directory(0o700)).unwrap();
    let (_, all) = written(&root);
    assert_eq!(all["/many"].0, 8);
    for number in 0..3000 {
        let file = &all[&format!("/many/{number:0>40}")];
        assert_eq!(file.4, format!("{number}").into_bytes());
    }
    assert_eq!(all["/z/b"].1, 0o700);
    assert_eq!(all.len(), 3000 + 33_000 + 5);
}

#[test]
fn an_empty_root_is_an_image() {
    let (_, all) = written(&Entry::directory(0o711));
    assert_eq!(all.len(), 1);
    assert_eq!(all[""].1, 0o711);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut root = Entry::directory(0o755);
    let missing = directory.path().join("missing");
    root.insert("/f", Entry::of_root(0o644, Node::File(missing)))
        .unwrap();
    let error = write(&root, &directory.path().join("image")).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}
