//! The state of one virtual CPU, as plain data.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The architectural registers of an x86_64 virtual CPU that say where it was and in what mode:
/// what a person needs to see when a guest stopped for a reason that nobody planned.
///
/// The full state that a restore needs is a superset of this and arrives with the snapshot format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the architecture's own")]
pub struct VcpuRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ss: u16,
}

impl fmt::Display for VcpuRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rip={:016x} cs={:04x} rflags={:08x} rsp={:016x} ss={:04x}",
            self.rip, self.cs, self.rflags, self.rsp, self.ss
        )?;
        writeln!(
            f,
            "rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "rsi={:016x} rdi={:016x} rbp={:016x} r8 ={:016x}",
            self.rsi, self.rdi, self.rbp, self.r8
        )?;
        writeln!(
            f,
            "r9 ={:016x} r10={:016x} r11={:016x} r12={:016x}",
            self.r9, self.r10, self.r11, self.r12
        )?;
        writeln!(
            f,
            "r13={:016x} r14={:016x} r15={:016x}",
            self.r13, self.r14, self.r15
        )?;
        write!(
            f,
            "cr0={:08x} cr2={:016x} cr3={:016x} cr4={:08x} efer={:08x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.efer
        )
    }
}
