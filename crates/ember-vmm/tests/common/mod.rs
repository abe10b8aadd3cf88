//! Guests of a few instructions: enough to say something about the monitor without an operating
//! system, on any KVM.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends by panicking"
)]

use ember_vmm::kernel::KernelImage;
use ember_vmm::{Vm, VmConfig};

/// Where the code is loaded and entered.
const LOAD_ADDRESS: u64 = 0x10_0000;

/// A 64-bit ELF executable whose whole content is `code`, entered at its first byte in long mode
/// with the first GiB mapped, as the 64-bit boot protocol has it.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 64 + 56;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend_from_slice(&2u16.to_le_bytes()); // executable
    file.extend_from_slice(&62u16.to_le_bytes()); // x86-64
    file.extend_from_slice(&1u32.to_le_bytes());
    file.extend_from_slice(&LOAD_ADDRESS.to_le_bytes()); // entry
    file.extend_from_slice(&64u64.to_le_bytes()); // program headers
    file.extend_from_slice(&0u64.to_le_bytes()); // section headers
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1u32.to_le_bytes()); // loadable
    file.extend_from_slice(&5u32.to_le_bytes()); // readable, executable
    for word in [
        HEADERS as u64,
        LOAD_ADDRESS,
        LOAD_ADDRESS,
        code.len() as u64,
        code.len() as u64,
        1,
    ] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(file.len(), HEADERS);
    file.extend_from_slice(code);
    file
}

/// A VM that runs `code`, built and not started.
pub fn vm(code: &[u8], change: impl FnOnce(&mut VmConfig)) -> Vm {
    let kernel = KernelImage::from_bytes(elf(code)).unwrap();
    let mut config = VmConfig::new(kernel);
    config.memory_bytes = 64 << 20;
    change(&mut config);
    Vm::new(config).unwrap()
}

/// `mov dx, port; mov al, value; out dx, al`
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `hlt; jmp` back to it.
pub const HALT: [u8; 3] = [0xf4, 0xeb, 0xfd];
/// `jmp` to itself.
pub const SPIN: [u8; 2] = [0xeb, 0xfe];
