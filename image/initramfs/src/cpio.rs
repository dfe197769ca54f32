//! The cpio "newc" archive that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use crate::InitramfsError;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in the making. Owner root, time zero, everywhere.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), inode: 0 }
    }

    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, 2, 0, (0, 0));
    }

    pub(crate) fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, CHARACTER | mode, 1, 0, (major, minor));
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), InitramfsError> {
        let size = u32::try_from(content.len()).map_err(|_| InitramfsError::TooLarge(path.to_owned()))?;
        self.entry(path, REGULAR | mode, 1, size, (0, 0));
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Closes the archive. The whole is a multiple of 512 bytes, as other writers make it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = u32::MAX;
        self.entry("TRAILER!!!", 0, 1, 0, (0, 0));
        let whole = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(whole, 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, size: u32, device: (u32, u32)) {
        self.inode = self.inode.wrapping_add(1);
        let name_size = path.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        let aligned = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(aligned, 0);
    }
}
