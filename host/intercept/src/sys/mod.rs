//! Files that nobody else on the host may read: each system has its own way to say so.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::{create_private, make_private_folder, mode_for_others, open_itself, sync_folder};

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::{create_private, make_private_folder, mode_for_others, open_itself, sync_folder};
