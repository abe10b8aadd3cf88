use super::*;

#[test]
fn memory_follows_the_machine_within_bounds() {
    assert_eq!(
        default_memory_mib("MemTotal:       24684000 kB\nMemFree: 1 kB\n"),
        6144
    );
    assert_eq!(default_memory_mib("MemTotal:        8192000 kB\n"), 4000);
    assert_eq!(default_memory_mib("MemTotal:         512000 kB\n"), 1024);
    assert_eq!(default_memory_mib(""), 2048);
    assert_eq!(code_cache_mib("MemTotal:       24684000 kB\n"), 2048);
    assert_eq!(code_cache_mib("MemTotal:        8192000 kB\n"), 1000);
    assert_eq!(code_cache_mib(""), 512);
}

fn arguments(icount: bool) -> String {
    let machine = Machine {
        guard: false,
        icount,
        cpus: 3,
        memory: Some(2048),
        timeout: 0,
    };
    let path = Path::new("/a,b");
    let qemu = Qemu {
        kernel: path,
        initramfs: path,
        out: path,
        run: path,
        machine: &machine,
    };
    let words: Vec<_> = qemu
        .arguments()
        .into_iter()
        .map(|w| w.into_string().unwrap())
        .collect();
    words.join(" ")
}

#[test]
fn the_deterministic_clock_means_one_cpu() {
    assert!(arguments(true).contains("-icount shift=0,sleep=off -rtc base=utc,clock=vm -smp 1 "));
    let ordinary = arguments(false);
    assert!(ordinary.contains("-smp 3 -m 2048 "));
    assert!(!ordinary.contains("icount"));
}

#[test]
fn commas_in_paths_are_doubled() {
    assert!(arguments(false).contains("path=/a,,b,security_model"));
}
