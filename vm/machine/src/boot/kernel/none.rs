//! Architectures without a machine yet.

use guest_memory::GuestMemory;

use super::Loaded;
use crate::boot::BootError;
use crate::boot::source::Source;

/// Refuses.
pub(in crate::boot) fn load(_memory: &GuestMemory, _kernel: &mut Source<'_>) -> Result<Loaded, BootError> {
    Err(BootError::Architecture(std::env::consts::ARCH))
}
