//! The file server behind this machine's own kernel: `/dev/fuse` carries the same requests as virtio-fs, so a real
//! client, cache and permission check are between a test's programs and the server, without a guest.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuse_wire::{RequestHandler, Server};
use hostfs::HostFs;
use rustix::mount::{MountFlags, UnmountFlags};

/// Room for the largest request or reply.
const MESSAGE: usize = (1 << 20) + (64 << 10);

/// A mounted file server; unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) at: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

impl Mounted {
    /// Mounts a server on a directory, or says why this process cannot.
    pub(crate) fn new(at: &Path, fs: HostFs, threads: usize) -> Result<Mounted, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|e| format!("/dev/fuse: {e}"))?;
        // As virtio-fs mounts it.
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other\0",
            device.as_raw_fd()
        );
        let options =
            std::ffi::CString::from_vec_with_nul(options.into_bytes()).map_err(|e| e.to_string())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("vivarium", at, "fuse", flags, Some(options.as_c_str()))
            .map_err(|errno| format!("mount: {errno}"))?;
        let (device, server) = (Arc::new(device), Arc::new(Server::new(fs)));
        let serve = |_| {
            let (device, server) = (Arc::clone(&device), Arc::clone(&server));
            std::thread::spawn(move || serve(&device, &*server))
        };
        Ok(Mounted { at: at.to_owned(), threads: (0..threads).map(serve).collect() })
    }

    /// Serves until somebody else unmounts it.
    #[allow(dead_code, reason = "the example's part")]
    pub(crate) fn wait(mut self) {
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

fn serve(device: &File, server: &dyn RequestHandler) {
    let (mut request, mut reply) = (vec![0; MESSAGE], vec![0; MESSAGE]);
    loop {
        let len = match (&*device).read(&mut request) {
            Ok(len) => len,
            // The request was withdrawn, or the call interrupted.
            Err(error) if matches!(error.raw_os_error(), Some(2 | 4 | 11)) => continue,
            Err(_) => return, // unmounted
        };
        let used = server.handle(&[IoSlice::new(&request[..len])], &mut [IoSliceMut::new(&mut reply)]);
        if used > 0 {
            // Refused only if nobody waits for it any more.
            let _ = (&*device).write(&reply[..used]);
        }
    }
}
