//! Linux: a memfd mapped twice.

use std::io;

/// Maps `bytes` of fresh memory twice: writable and executable.
pub(crate) fn map_twice(bytes: usize) -> io::Result<(*mut u8, *const u8)> {
    // SAFETY: plain system calls; both mappings are of the same fresh memfd and are checked.
    unsafe {
        let fd = libc::memfd_create(c"vivarium-stubs".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let map = |prot| libc::mmap(std::ptr::null_mut(), bytes, prot, libc::MAP_SHARED, fd, 0);
        let sized = libc::ftruncate(fd, bytes as i64) == 0;
        let writable = if sized { map(libc::PROT_READ | libc::PROT_WRITE) } else { libc::MAP_FAILED };
        let executable = if sized { map(libc::PROT_READ | libc::PROT_EXEC) } else { libc::MAP_FAILED };
        let error = io::Error::last_os_error();
        libc::close(fd);
        if writable == libc::MAP_FAILED || executable == libc::MAP_FAILED {
            return Err(error);
        }
        Ok((writable.cast(), executable.cast_const().cast()))
    }
}

/// Gives both mappings back.
///
/// # Safety
/// They come from [`map_twice`] with this length, and nothing points into them any more.
pub(crate) unsafe fn unmap_both(writable: *mut u8, executable: *const u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        libc::munmap(writable.cast(), bytes);
        libc::munmap(executable.cast_mut().cast(), bytes);
    }
}
