//! Systems without a confinement of ours yet. They refuse: nothing may run unconfined.

use crate::{Call, ConfineError, Forked, Grants, Report, Role};

/// Refuses.
pub(crate) fn confine(_role: Role, _grants: &Grants<'_>) -> Result<Report, ConfineError> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn become_keeper() -> Result<Report, ConfineError> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn fork() -> Result<Forked, ConfineError> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn harden() -> Result<(), ConfineError> {
    Err(unsupported())
}

/// There is none.
pub(crate) fn landlock() -> Option<u32> {
    None
}

/// It has no roles to start.
pub(crate) fn keep_descriptors() -> std::io::Result<()> {
    Ok(())
}

/// There is no table without a filter.
pub(crate) fn table(_role: Role) -> &'static [Call] {
    &[]
}

fn unsupported() -> ConfineError {
    ConfineError::Unsupported(std::env::consts::OS)
}
