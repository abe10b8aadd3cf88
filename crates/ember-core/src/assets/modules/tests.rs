use super::*;

/// An ELF file with the sections `.shstrtab` and `.modinfo`.
fn module(modinfo: &str) -> Vec<u8> {
    let names = b"\0.shstrtab\0.modinfo\0";
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let names_at = elf.len() as u64;
    elf.extend_from_slice(names);
    let info_at = elf.len() as u64;
    elf.extend_from_slice(modinfo.as_bytes());
    let table = elf.len() as u64;
    elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    elf[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
    elf[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
    for (name, at, size) in [(1_u32, names_at, names.len()), (11, info_at, modinfo.len())] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    }
    elf
}

fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel/drivers");
    fs::create_dir_all(&kernel).unwrap();
    for (name, modinfo) in modules {
        fs::write(kernel.join(name), module(modinfo)).unwrap();
    }
    fs::write(directory.path().join("modules.builtin"), builtin).unwrap();
    directory
}

#[test]
fn modules_come_after_what_they_depend_on_and_only_once() {
    let tree = tree(
        &[
            ("virtio-rng.ko", "depends=rng-core\0"),
            ("rng-core.ko", "depends=\0"),
            (
                "virtio_net.ko",
                "license=GPL\0depends=failover,net_failover\0",
            ),
            ("net_failover.ko", "depends=failover\0"),
            ("failover.ko", "depends=\0"),
            (
                "squashfs.ko",
                "depends=built_in\0softdep=pre: early nowhere post: late\0",
            ),
            ("early.ko", "depends=\0"),
            ("late.ko", "depends=\0"),
            ("other.ko", "depends=\0"),
        ],
        "kernel/lib/built-in.ko\nkernel/fs/ext4.ko\n",
    );
    let names: Vec<String> = collect(tree.path())
        .unwrap()
        .into_iter()
        .map(|module| module.name)
        .collect();
    assert_eq!(
        names,
        [
            "early",
            "squashfs",
            "rng_core",
            "virtio_rng",
            "failover",
            "net_failover",
            "virtio_net"
        ]
    );
}

#[test]
fn compressed_modules_are_decompressed() {
    use std::io::Write;
    let tree = tree(&[], "");
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(&module("depends=\0")).unwrap();
    fs::write(
        tree.path().join("kernel/drivers/overlay.ko.xz"),
        encoder.finish().unwrap(),
    )
    .unwrap();
    let modules = collect(tree.path()).unwrap();
    assert_eq!(modules[0].bytes, module("depends=\0"));
}

#[test]
fn a_dependency_that_is_not_there_is_named_with_who_needs_it() {
    let tree = tree(&[("overlay.ko", "depends=absent\0")], "");
    let text = collect(tree.path()).unwrap_err().to_string();
    assert!(
        text.contains("overlay") && text.contains("absent"),
        "{text}"
    );
}

#[test]
fn two_modules_that_depend_on_each_other_do_not_hang() {
    let tree = tree(
        &[
            ("overlay.ko", "depends=erofs\0"),
            ("erofs.ko", "depends=overlay\0"),
        ],
        "",
    );
    assert_eq!(collect(tree.path()).unwrap().len(), 2);
}

#[test]
fn no_cut_of_a_module_panics() {
    let whole = module("depends=a,b\0");
    assert_eq!(dependencies(modinfo(&whole).unwrap()), ["a", "b"]);
    for length in 0..whole.len() {
        let _ = modinfo(&whole[..length]);
    }
    let mut huge = whole;
    huge[0x28..0x30].fill(0xff);
    assert!(modinfo(&huge).is_err());
}
