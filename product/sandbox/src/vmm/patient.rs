//! A disk on a host that may run out of room.
//!
//! virtio-blk has no word for that; an I/O error would make ext4 give up the whole file system. So the write waits, with the rest of
//! the disk behind it, until there is room, and the shim is told. Other devices go on.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backends::BlockBackend;
use machine::MachineHandle;

use crate::error::is_full;
use crate::packet;
use crate::plan::{DiskWork, FromVmm};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// Who is told that a disk waits, and who says that it need not any more. Made before the machine, which is put in later.
#[derive(Clone)]
pub(super) struct Waiting {
    control: Arc<OwnedFd>,
    machine: Arc<OnceLock<MachineHandle>>,
    work: Arc<Work>,
}

/// How many requests that change a disk were begun, and how many the host has done.
#[derive(Default)]
struct Work {
    begun: AtomicU64,
    done: AtomicU64,
}

impl Waiting {
    /// With the line to the shim.
    pub(super) fn new(control: OwnedFd) -> Self {
        Self { control: Arc::new(control), machine: Arc::new(OnceLock::new()), work: Arc::default() }
    }

    /// The line to the shim.
    pub(super) fn control(&self) -> &Arc<OwnedFd> {
        &self.control
    }

    /// The machine whose end ends all waiting.
    pub(super) fn set_machine(&self, machine: MachineHandle) {
        let _ = self.machine.set(machine);
    }

    /// What the disks do.
    pub(super) fn work(&self) -> DiskWork {
        let done = self.work.done.load(Ordering::Relaxed);
        DiskWork { done, busy: self.work.begun.load(Ordering::Relaxed) > done }
    }

    /// Counts a request, whatever comes of it.
    fn counted<T>(&self, request: impl FnOnce() -> T) -> T {
        self.work.begun.fetch_add(1, Ordering::Relaxed);
        let outcome = request();
        self.work.done.fetch_add(1, Ordering::Relaxed);
        outcome
    }

    /// Said at each attempt, so that a word that is lost, as the shim has no time to listen, does not matter.
    fn say(&self) {
        let _ = packet::send_now(&*self.control, &FromVmm::HostFull, &[]);
    }

    fn is_in_vain(&self) -> bool {
        self.machine.get().is_some_and(MachineHandle::has_ended)
    }
}

/// A disk that waits for room.
pub(super) struct Patient<B> {
    disk: B,
    waiting: Waiting,
}

impl<B: BlockBackend> Patient<B> {
    pub(super) fn new(disk: B, waiting: Waiting) -> Self {
        Self { disk, waiting }
    }

    /// Does it again until it works, fails for another reason, or the machine has ended.
    fn patiently(&self, action: impl Fn() -> io::Result<()>) -> io::Result<()> {
        self.waiting.counted(|| self.until_done(action))
    }

    fn until_done(&self, action: impl Fn() -> io::Result<()>) -> io::Result<()> {
        loop {
            let outcome = action();
            if !outcome.as_ref().is_err_and(is_full) || self.waiting.is_in_vain() {
                return outcome;
            }
            self.waiting.say();
            std::thread::sleep(PAUSE);
        }
    }
}

impl<B: BlockBackend> BlockBackend for Patient<B> {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.disk.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.patiently(|| self.disk.write(offset, buffers))
    }

    /// Not again after a failure: the host may have dropped what it could not write, and would call the next attempt a success.
    fn flush(&self) -> io::Result<()> {
        self.waiting.counted(|| self.disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.patiently(|| self.disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.patiently(|| self.disk.write_zeroes(offset, len))
    }
}

/// A disk whose content is of no use after a failure: what the host has no room for fails, and the shim learns why.
pub(super) struct Impatient<B> {
    disk: B,
    waiting: Waiting,
    said: AtomicBool,
}

impl<B: BlockBackend> Impatient<B> {
    pub(super) fn new(disk: B, waiting: Waiting) -> Self {
        Self { disk, waiting, said: AtomicBool::new(false) }
    }

    /// Said once: nobody listens before the machine's end.
    fn note(&self, outcome: io::Result<()>) -> io::Result<()> {
        if outcome.as_ref().is_err_and(is_full) && !self.said.swap(true, Ordering::Relaxed) {
            self.waiting.say();
        }
        outcome
    }
}

impl<B: BlockBackend> BlockBackend for Impatient<B> {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.disk.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.note(self.disk.write(offset, buffers))
    }

    fn flush(&self) -> io::Result<()> {
        self.note(self.disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(self.disk.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(self.disk.write_zeroes(offset, len))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    /// A disk whose host is full for the first few writes.
    struct Full(AtomicU32, i32);

    impl BlockBackend for Full {
        fn len(&self) -> u64 {
            4096
        }

        fn read_only(&self) -> bool {
            false
        }

        fn read(&self, _: u64, _: &mut [IoSliceMut<'_>]) -> io::Result<()> {
            Ok(())
        }

        fn write(&self, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
            let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            left.map_or(Ok(()), |_| Err(io::Error::from_raw_os_error(self.1)))
        }

        fn flush(&self) -> io::Result<()> {
            self.write(0, &[])
        }

        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    const NO_SPACE: i32 = rustix::io::Errno::NOSPC.raw_os_error();

    #[test]
    fn a_write_waits_for_room_and_the_shim_is_told_at_each_attempt() {
        let (near, far) = packet::pair().unwrap();
        let disk = Patient::new(Full(AtomicU32::new(3), NO_SPACE), Waiting::new(near));
        disk.write(0, &[]).unwrap();
        drop(disk);
        let mut told = Vec::new();
        while let Ok(Some((message, _))) = packet::receive::<FromVmm>(&far) {
            told.push(message);
        }
        assert_eq!(told, [FromVmm::HostFull, FromVmm::HostFull, FromVmm::HostFull]);
    }

    #[test]
    fn what_the_host_does_and_has_done_can_be_told() {
        let (near, _far) = packet::pair().unwrap();
        let waiting = Waiting::new(near);
        let disk = Patient::new(Full(AtomicU32::new(0), NO_SPACE), waiting.clone());
        assert_eq!(waiting.work(), DiskWork::default());
        disk.write(0, &[]).unwrap();
        disk.flush().unwrap();
        assert_eq!(waiting.work(), DiskWork { done: 2, busy: false });
        waiting.counted(|| assert!(waiting.work().busy, "while it is at it"));
    }

    #[test]
    fn who_does_not_wait_says_once_that_there_is_no_room() {
        let (near, far) = packet::pair().unwrap();
        let disk = Impatient::new(Full(AtomicU32::new(3), NO_SPACE), Waiting::new(near));
        for _ in 0..3 {
            assert!(disk.write(0, &[]).is_err());
        }
        disk.write(0, &[]).unwrap();
        drop(disk);
        assert_eq!(packet::receive::<FromVmm>(&far).unwrap().unwrap().0, FromVmm::HostFull);
        assert!(packet::receive::<FromVmm>(&far).unwrap().is_none());
    }

    #[test]
    fn other_errors_and_a_failed_flush_are_the_guests() {
        let (near, _far) = packet::pair().unwrap();
        let waiting = Waiting::new(near);
        let broken =
            Patient::new(Full(AtomicU32::new(1), rustix::io::Errno::IO.raw_os_error()), waiting.clone());
        assert!(broken.write(0, &[]).is_err());
        let full = Patient::new(Full(AtomicU32::new(1), NO_SPACE), waiting);
        assert!(full.flush().is_err());
    }
}
