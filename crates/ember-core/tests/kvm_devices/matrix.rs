//! Every device on every kernel, with 1, 2 and 4 processors.

use std::time::Instant;

use ember_core::Kernel;

use crate::machine::Equipped;
use crate::{balloon, disk, identity, network, vsock};

type Check = fn(&Equipped);

/// What each of the guests has to show.
const CHECKS: [(&str, Check); 8] = [
    ("disk", disk::is_seen_from_both_sides),
    ("discard", disk::gives_back_what_is_discarded),
    ("read-only disk", disk::cannot_be_written),
    ("network", |equipped| {
        network::carries_tcp_both_ways(equipped, 1 << 20);
    }),
    ("vsock", vsock::calls_both_ways),
    ("balloon", balloon::follows_its_target),
    ("generation id", identity::reseeds_for_a_new_generation_id),
    ("entropy", identity::has_entropy),
];

fn every_device_works(name: &str, kernel: &Kernel, number: u8, processors: &[u8]) {
    for &vcpus in processors {
        let begun = Instant::now();
        let equipped = Equipped::boot(kernel, vcpus, number);
        for (device, check) in CHECKS {
            // Shown when one fails: which.
            let seconds = begun.elapsed().as_secs_f64();
            println!("{seconds:5.1} s, {name} kernel, {vcpus} vCPUs: {device}");
            check(&equipped);
        }
    }
}

#[test]
fn every_device_works_on_the_stock_kernel_with_1_and_4_processors() {
    every_device_works("stock", &Kernel::stock(), 10, &[1, 4]);
}

#[test]
fn every_device_works_on_the_tuned_kernel_with_2_processors() {
    every_device_works("tuned", &Kernel::tuned(), 11, &[2]);
}

#[test]
#[ignore = "the rest of the matrix: a minute"]
fn every_device_works_on_each_kernel_with_the_other_numbers_of_processors() {
    every_device_works("stock", &Kernel::stock(), 10, &[2]);
    every_device_works("tuned", &Kernel::tuned(), 11, &[1, 4]);
}
