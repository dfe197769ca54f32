//! x86-64: an uncompressed ELF.

use guest_memory::GuestMemory;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::GuestAddress;

use super::Loaded;
use crate::boot::BootError;
use crate::boot::source::Source;
use crate::layout;

pub(in crate::boot) fn load(memory: &GuestMemory, kernel: &mut Source<'_>) -> Result<Loaded, BootError> {
    let high_memory = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = Elf::load(memory, None, kernel, high_memory).map_err(BootError::Kernel)?;
    Ok(Loaded { entry: loaded.kernel_load.0, end: loaded.kernel_end })
}
