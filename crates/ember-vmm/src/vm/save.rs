//! Taking the state of a VM that holds still.

use std::io;

use ember_snapshot::pager::{self, Pager};
use ember_snapshot::state::VmState;
use ember_snapshot::{PageSet, WorkingSet};

use super::{OutOfMemoryRange, Vm};
use crate::arch;
use crate::arch::state::{self, VcpuFeatures};
use crate::memory;

/// The state of a VM cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// It runs, or has ended.
    #[error("only a paused VM can be saved: call `pause` first")]
    NotPaused,
    /// KVM refused a step.
    #[error("cannot take the state of {part}")]
    Host {
        /// Which part of the VM.
        part: String,
        /// What KVM said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn host(part: impl Into<String>) -> impl FnOnce(arch::SetupError) -> SaveError {
    let part = part.into();
    move |source| SaveError::Host {
        part,
        source: Box::new(source),
    }
}

/// A range of a guest's memory and where it is in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Where it begins in the guest's memory, counted without the hole below 4 GiB, in bytes.
    pub offset: u64,
    /// Where it is mapped.
    pub host_address: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl Vm {
    /// The state of everything but the memory. The VM must be [paused](Self::pause), and goes on as
    /// if nothing had happened.
    ///
    /// # Errors
    /// If it is not paused, or KVM refuses a part of its state.
    pub fn save(&self) -> Result<VmState, SaveError> {
        let features = self.vcpu_features()?;
        self.save_with(&features)
    }

    /// What a vCPU consists of, which can be known before the VM is paused.
    pub(super) fn vcpu_features(&self) -> Result<VcpuFeatures, SaveError> {
        state::vcpu_features(self.hypervisor.kvm(), self.vm.fd()).map_err(host("KVM"))
    }

    pub(super) fn save_with(&self, features: &VcpuFeatures) -> Result<VmState, SaveError> {
        let _transition = self.transition();
        if !self.control.is_paused() {
            return Err(SaveError::NotPaused);
        }
        // The devices first: what they still had to do would be in the interrupt chips.
        let virtio = self.bus.virtio.iter().map(|device| device.save()).collect();
        let serial = self.bus.serial.save();
        let vcpus = self
            .vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| {
                state::save_vcpu(&vcpu.lock(), features).map_err(host(format!("vCPU {index}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let chips = state::save_chips(self.vm.fd()).map_err(host("the interrupt chips"))?;
        let clock = state::save_clock(self.vm.fd()).map_err(host("the clock"))?;
        Ok(VmState {
            memory_bytes: self.memory_bytes(),
            vcpus,
            chips,
            clock,
            serial,
            generation_id: self.generation_id.is_some(),
            virtio,
        })
    }

    /// Hands all memory to `sink` that is not what it was when the VM was made: its place in the
    /// guest's memory, counted without the hole below 4 GiB, and its content, in whole pages. Of a
    /// new VM that is all it ever touched; of a restored one all it ever wrote. Only of a paused VM
    /// is it of one moment.
    ///
    /// # Errors
    /// If this process cannot see its own page tables, or `sink` fails.
    pub fn changed_memory(
        &self,
        mut sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        memory::visit_changed(self.vm.memory(), &mut sink)
    }

    /// Prepares the VM for touching what `touched` says, before it runs: the pages are copied or
    /// mapped now, all at once, and not one by one when the guest waits for each. It changes nothing
    /// but how long things take, so that nobody is told what could not be done.
    pub fn prefetch(&self, touched: &WorkingSet) {
        let _transition = self.transition();
        let debug = |error: String| {
            tracing::debug!(error, "a guest's working set cannot be brought in ahead");
        };
        let mapping = match memory::mapping(self.vm.memory()) {
            Ok(mapping) => mapping,
            Err(error) => return debug(error.to_string()),
        };
        if let Err(error) = pager::copy_ahead(&mapping, &touched.written) {
            debug(error.to_string());
        }
        if let Some(vcpu) = self.vcpus.first().filter(|_| self.control.is_paused()) {
            // To ask for a run takes longer than to map two pages more.
            let all = touched.written.union(&touched.read).without_gaps_of(2);
            if memory::map_for_guest(&vcpu.lock(), self.vm.memory(), &all) {
                return;
            }
        }
        if let Err(error) = pager::map_ahead(&mapping, &touched.read) {
            debug(error.to_string());
        }
    }

    /// What the guest has touched since it was restored, if it is [paged](crate::Backing::Paged)
    /// without a window around each page: exactly that. What it wrote cannot be told from what it
    /// read then.
    pub fn paged_in(&self) -> Option<PageSet> {
        self.pager.as_ref().map(Pager::filled)
    }

    /// Which pages of its memory are no longer what they were when the VM was made. While it is being
    /// saved live, those that were swapped out before are left out.
    ///
    /// # Errors
    /// If this process cannot see its own page tables.
    pub fn copied_pages(&self) -> io::Result<PageSet> {
        let mapping = memory::mapping(self.vm.memory())?;
        pager::copied_pages(&mapping).map_err(io::Error::other)
    }

    /// Where the guest's memory is in this process.
    pub fn memory_ranges(&self) -> Vec<MemoryRange> {
        memory::ranges(self.vm.memory())
    }
}

impl From<OutOfMemoryRange> for io::Error {
    fn from(error: OutOfMemoryRange) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}
