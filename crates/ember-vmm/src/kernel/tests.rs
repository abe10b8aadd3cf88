mod build;

use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use self::build::{ADDRESS, CODE, ENTRY, LOAD_HEADER, MEMORY_SIZE, Options, PVH_ENTRY};
use super::load::LoadError;
use super::*;
use crate::memory::GuestMemory;

const MIB: usize = 1 << 20;
const UNPACKABLE: [Compression; 6] = [
    Compression::None,
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Lzma,
    Compression::Lz4,
];

fn memory(mib: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), mib * MIB)]).unwrap()
}

fn packed(kernel: &[u8], compression: Compression) -> Vec<u8> {
    build::bzimage(&build::pack(kernel, compression), &Options::default())
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn code_in(memory: &GuestMemory) -> [u8; 64] {
    let mut code = [0; 64];
    memory.read_slice(&mut code, GuestAddress(ADDRESS)).unwrap();
    code
}

#[test]
fn an_elf_kernel_is_loaded_and_entered_by_pvh() {
    let image = KernelImage::from_bytes(build::elf(true)).unwrap();
    let memory = memory(64);
    let loaded = image.load(&memory).unwrap();
    let address = GuestAddress(u64::from(PVH_ENTRY));
    assert_eq!(loaded.entry, Entry::Pvh { address });
    assert_eq!(loaded.end, GuestAddress(ADDRESS + MEMORY_SIZE));
    assert_eq!(code_in(&memory), CODE);
    assert!(image.vmlinux().is_none(), "nothing was unpacked");
}

#[test]
fn an_elf_kernel_without_pvh_is_entered_in_64_bit_mode() {
    let image = KernelImage::from_bytes(build::elf(false)).unwrap();
    let entry = image.load(&memory(64)).unwrap().entry;
    assert_eq!(
        entry,
        Entry::Linux64 {
            address: GuestAddress(ENTRY),
            setup: None
        }
    );
}

#[test]
fn every_compression_is_unpacked() {
    let kernel = build::elf(true);
    for compression in UNPACKABLE {
        let image = KernelImage::from_bytes(packed(&kernel, compression)).unwrap();
        // An unpacked payload keeps what stands behind it: in a real image, relocations.
        let unpacked = image.vmlinux().unwrap();
        assert_eq!(&unpacked[..kernel.len()], kernel, "{compression}");
        let memory = memory(64);
        let loaded = image.load(&memory).unwrap();
        assert!(matches!(loaded.entry, Entry::Pvh { .. }), "{compression}");
        assert_eq!(code_in(&memory), CODE, "{compression}");
    }
}

#[test]
fn a_kernel_of_several_lz4_blocks_is_put_together() {
    let mut kernel = build::elf(true);
    kernel.extend((0..20 << 20).map(|i: u32| (i >> 7) as u8));
    let payload = build::pack(&kernel, Compression::Lz4);
    let options = Options {
        init_size: 32 << 20,
        ..Options::default()
    };
    let image = KernelImage::from_bytes(build::bzimage(&payload, &options)).unwrap();
    assert!(image.vmlinux().unwrap() == kernel);
}

#[test]
fn the_setup_header_of_a_bzimage_stays_with_its_kernel() {
    let image = KernelImage::from_bytes(packed(&build::elf(false), Compression::Zstd)).unwrap();
    let Entry::Linux64 {
        address,
        setup: Some(setup),
    } = image.load(&memory(64)).unwrap().entry
    else {
        panic!("entered otherwise");
    };
    assert_eq!(address, GuestAddress(ENTRY));
    assert_eq!(setup.bytes.len(), 0x26C - 0x1F1);
    assert_eq!((setup.version, setup.command_line_max), (0x20F, 2047));
}

#[test]
fn files_and_memory_give_the_same_guest() {
    let kernel = build::elf(true);
    for bytes in [kernel.clone(), packed(&kernel, Compression::Gzip)] {
        let image = KernelImage::from_file(file(&bytes)).unwrap();
        for image in [image.clone(), image] {
            let memory = memory(64);
            assert!(matches!(
                image.load(&memory).unwrap().entry,
                Entry::Pvh { .. }
            ));
            assert_eq!(code_in(&memory), CODE);
        }
    }
}

#[test]
fn clones_of_an_image_can_be_loaded_at_once() {
    let mut kernel = build::elf(true);
    // A long segment with a pattern, so that a position that moved in between shows.
    let pattern: Vec<u8> = (0..4 * MIB).map(|i| (i / 4096) as u8).collect();
    let offset = kernel.len() as u64;
    kernel.extend(&pattern);
    for (at, value) in [
        (8, offset),
        (32, pattern.len() as u64),
        (40, pattern.len() as u64),
    ] {
        kernel[LOAD_HEADER + at..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let image = KernelImage::from_file(file(&kernel)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let image = image.clone();
            let pattern = &pattern;
            scope.spawn(move || {
                let memory = memory(64);
                image.load(&memory).unwrap();
                let mut loaded = vec![0; pattern.len()];
                memory
                    .read_slice(&mut loaded, GuestAddress(ADDRESS))
                    .unwrap();
                assert!(&loaded == pattern);
            });
        }
    });
}

#[test]
fn a_file_that_was_cut_off_since_is_an_error() {
    let file = file(&build::elf(true));
    let image = KernelImage::from_file(file.try_clone().unwrap()).unwrap();
    file.set_len(200).unwrap();
    assert!(matches!(image.load(&memory(64)), Err(LoadError::Copy(_))));
}

#[test]
fn a_kernel_that_cannot_be_unpacked_unpacks_itself() {
    for compression in [Compression::Lzo, Compression::Bzip2] {
        let bytes = packed(&build::elf(true), compression);
        let image = KernelImage::from_bytes(bytes.clone()).unwrap();
        assert!(image.vmlinux().is_none());
        let memory = memory(64);
        let loaded = image.load(&memory).unwrap();
        let Entry::Linux64 {
            address,
            setup: Some(_),
        } = loaded.entry
        else {
            panic!("{:?}", loaded.entry);
        };
        assert_eq!(address, GuestAddress(ADDRESS + 0x200));
        assert_eq!(
            loaded.end,
            GuestAddress(ADDRESS + MIB as u64),
            "all of init_size is taken"
        );
        let mut payload = [0; 5];
        let offset = build::PAYLOAD_OFFSET as u64;
        memory
            .read_slice(&mut payload, GuestAddress(ADDRESS + offset))
            .unwrap();
        assert_eq!(payload, bytes[4 * 512 + build::PAYLOAD_OFFSET..][..5]);
    }
}

#[test]
fn a_kernel_that_cannot_be_started_at_all_is_refused() {
    let options = Options {
        xloadflags: 0,
        ..Options::default()
    };
    let payload = build::pack(&build::elf(true), Compression::Lzo);
    let error = KernelImage::from_bytes(build::bzimage(&payload, &options)).unwrap_err();
    assert!(matches!(error, KernelError::NoEntry));
}

#[test]
fn damage_is_told_from_what_is_not_known() {
    for compression in UNPACKABLE.into_iter().skip(1) {
        let mut payload = build::pack(&build::elf(true), compression);
        let cut = payload.len() / 2;
        payload.truncate(cut);
        let image = build::bzimage(&payload, &Options::default());
        let error = KernelImage::from_bytes(image).unwrap_err();
        assert!(
            matches!(error, KernelError::Damaged(c, _) if c == compression),
            "{error:?}"
        );
    }
}

#[test]
fn a_payload_without_a_kernel_in_it_is_an_error() {
    let image = packed(
        b"this is not a kernel, but it is long enough to be packed",
        Compression::Xz,
    );
    let error = KernelImage::from_bytes(image).unwrap_err();
    assert!(matches!(error, KernelError::Elf(_)), "{error:?}");
}

#[test]
fn what_is_unpacked_is_bounded() {
    let mut bomb = build::elf(true);
    bomb.resize(9 * MIB, 0);
    for compression in UNPACKABLE {
        let error = KernelImage::from_bytes(packed(&bomb, compression)).unwrap_err();
        assert!(
            matches!(error, KernelError::Oversized(MIB)),
            "{compression}: {error:?}"
        );
    }
}

#[test]
fn a_size_that_lies_does_no_harm() {
    let kernel = build::elf(true);
    let mut payload = build::pack(&kernel, Compression::Zstd);
    let end = payload.len();
    payload[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
    let image = KernelImage::from_bytes(build::bzimage(&payload, &Options::default())).unwrap();
    assert_eq!(image.vmlinux(), Some(kernel.as_slice()));
}

#[test]
fn images_of_other_ages_are_read_or_refused() {
    let payload = build::pack(&build::elf(true), Compression::Gzip);
    let build = |options: Options| KernelImage::from_bytes(build::bzimage(&payload, &options));

    let zero_means_four = Options {
        setup_sectors: 0,
        ..Options::default()
    };
    assert!(build(zero_means_four).is_ok());
    let without_init_size = Options {
        version: 0x208,
        ..Options::default()
    };
    assert!(build(without_init_size).is_ok());
    let too_old = build(Options {
        version: 0x207,
        ..Options::default()
    })
    .unwrap_err();
    assert!(matches!(
        too_old,
        KernelError::BzImage(BzImageError::Version(0x207))
    ));
}

#[test]
fn a_header_that_points_elsewhere_is_an_error() {
    let good = packed(&build::elf(true), Compression::Gzip);
    let with = |offset: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        KernelImage::from_bytes(image).unwrap_err()
    };
    let all = &u32::MAX.to_le_bytes();
    for (offset, bytes) in [
        (0x1F1, &[0xFF][..]),
        (0x1F4, all),
        (0x248, all),
        (0x24C, all),
    ] {
        let error = with(offset, bytes);
        assert!(
            matches!(error, KernelError::BzImage(BzImageError::Truncated(_))),
            "{error:?}"
        );
    }
    for jump in [0xFF, 0x8F, 0x10, 0] {
        let error = with(0x201, &[jump]);
        assert!(
            matches!(error, KernelError::BzImage(BzImageError::SetupHeader)),
            "{error:?}"
        );
    }
    let low = with(0x211, &[0]);
    assert!(matches!(low, KernelError::BzImage(BzImageError::LoadedLow)));
}

#[test]
fn no_cut_or_bent_file_panics() {
    let kernel = build::elf(true);
    let options = Options {
        init_size: 1 << 16,
        ..Options::default()
    };
    let image = build::bzimage(&build::pack(&kernel, Compression::Lz4), &options);
    let memory = memory(32);
    for whole in [&kernel, &image] {
        for len in 0..whole.len() {
            let _ = KernelImage::from_bytes(whole[..len].to_vec());
        }
        for at in 0..whole.len().min(0x800) {
            for value in [0, 0x7F, 0x80, 0xFF] {
                let mut bent = whole.clone();
                bent[at] = value;
                let _ = KernelImage::from_bytes(bent).map(|image| image.load(&memory));
            }
        }
    }
}

#[test]
fn an_elf_file_that_contradicts_itself_is_refused() {
    let with = |offset: usize, bytes: &[u8]| {
        let mut file = build::elf(true);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        match KernelImage::from_bytes(file).unwrap_err() {
            KernelError::Elf(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let all = &u64::MAX.to_le_bytes();
    assert!(matches!(with(4, &[1]), ElfError::Class));
    assert!(matches!(with(5, &[2]), ElfError::Class));
    assert!(matches!(with(18, &[0xB7]), ElfError::Machine(0xB7)));
    assert!(matches!(with(16, &[1]), ElfError::Type(1)));
    assert!(matches!(with(32, all), ElfError::Truncated(_)));
    assert!(matches!(
        with(54, &[55]),
        ElfError::ProgramHeaders { count: 2, size: 55 }
    ));
    assert!(matches!(
        with(56, &[0xFF, 0xFF]),
        ElfError::ProgramHeaders { .. }
    ));
    assert!(matches!(with(56, &[0, 0]), ElfError::Empty));
    assert!(matches!(with(24, &[0; 8]), ElfError::Entry(0)));
    // The segment: where in the file, address, size in the file, size in memory.
    assert!(matches!(with(LOAD_HEADER + 8, all), ElfError::Segment(1)));
    assert!(matches!(with(LOAD_HEADER + 24, all), ElfError::Segment(1)));
    assert!(matches!(
        with(LOAD_HEADER + 32, &[0, 1]),
        ElfError::Truncated(_)
    ));
    assert!(matches!(with(LOAD_HEADER + 32, all), ElfError::Segment(1)));
    assert!(matches!(
        with(LOAD_HEADER + 40, &[1, 0]),
        ElfError::Segment(1)
    ));
}

#[test]
fn a_kernel_has_to_be_where_memory_is() {
    let image = KernelImage::from_bytes(build::elf(true)).unwrap();
    let error = image.load(&memory(16)).unwrap_err();
    assert!(
        matches!(error, LoadError::TooLittleMemory { .. }),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "the kernel takes memory up to 17 MiB, the guest has 16 MiB below 4 GiB; give it more"
    );

    let mut low = build::elf(false);
    low[LOAD_HEADER + 24..][..8].copy_from_slice(&0x8000u64.to_le_bytes());
    low[24..32].copy_from_slice(&0x8000u64.to_le_bytes());
    let error = KernelImage::from_bytes(low)
        .unwrap()
        .load(&memory(64))
        .unwrap_err();
    assert!(matches!(error, LoadError::TooLow(0x8000)), "{error:?}");
}

#[test]
fn what_is_no_kernel_is_named() {
    for (bytes, what) in [
        (&b""[..], "an empty file"),
        (b"!<arch>\ndebian-binary", "a Debian package"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"070701000", "an initramfs"),
        (b"\0\0\0\0", "an unknown kind of file"),
    ] {
        for error in [
            KernelImage::from_bytes(bytes.to_vec()).unwrap_err(),
            KernelImage::from_file(file(bytes)).unwrap_err(),
        ] {
            assert!(
                error.to_string().starts_with(&format!("this is {what}")),
                "{error}"
            );
        }
    }
    assert!(matches!(
        KernelImage::from_path("/nonexistent"),
        Err(KernelError::Read(_))
    ));
}
