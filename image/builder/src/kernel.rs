//! The kernel out of Debian's package: uncompressed for a direct boot, and its modules.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use debian::Deb;
use erofs::{Kind, TarReader};

use crate::{BuildError, io_error};

/// A kernel in a folder of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The uncompressed ELF image, to be entered at its 64-bit entry point.
    pub elf: PathBuf,
    /// The same as it came, a bzImage; for machines that load that.
    pub bzimage: PathBuf,
    /// The folder of its modules (`…/<release>`, with `kernel/…/*.ko.xz` below).
    pub modules: PathBuf,
    /// Its release, as `uname -r` says.
    pub release: String,
}

/// Larger than any kernel there has been.
const KERNEL_LIMIT: u64 = 256 << 20;
const MODULES: &[u8] = b"usr/lib/modules/";

impl Kernel {
    /// Finds the kernel that [`unpack`] put into `folder`.
    #[must_use]
    pub fn open(folder: &Path, release: &str) -> Self {
        Self {
            elf: folder.join("vmlinux"),
            bzimage: folder.join("vmlinuz"),
            modules: folder.join("modules").join(release),
            release: release.to_owned(),
        }
    }
}

/// Takes the package apart into `folder`.
///
/// # Errors
/// If the package is not a kernel's or writing fails.
pub(crate) fn unpack(package: &Path, folder: &Path) -> Result<Kernel, BuildError> {
    let mut deb = Deb::open(BufReader::new(File::open(package).map_err(io_error("open", package))?))?;
    let mut tar = TarReader::new(deb.contents("data.tar")?);
    let mut release = None;
    while let Some(entry) = tar.next_entry()? {
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        if entry.kind != Kind::Regular {
            continue;
        }
        if let Some(name) = path.strip_prefix(b"boot/vmlinuz-") {
            release = Some(plain_name(name)?);
            let mut image = Vec::new();
            (&mut tar).take(KERNEL_LIMIT).read_to_end(&mut image).map_err(io_error("read", package))?;
            write(&folder.join("vmlinuz"), &image)?;
            write(&folder.join("vmlinux"), &decompress(&image)?)?;
        } else if let Some(below) = path.strip_prefix(MODULES) {
            let mut to = folder.join("modules");
            for name in below.split(|byte| *byte == b'/') {
                to.push(plain_name(name)?);
            }
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(io_error("create", parent))?;
            }
            let mut file = File::create(&to).map_err(io_error("create", &to))?;
            std::io::copy(&mut tar, &mut file).map_err(io_error("write", &to))?;
        }
    }
    let release = release.ok_or(BuildError::Kernel("the package has no kernel in it"))?;
    let kernel = Kernel::open(folder, &release);
    if kernel.modules.is_dir() {
        Ok(kernel)
    } else {
        Err(BuildError::Kernel("the package has no modules in it"))
    }
}

/// A name that is a file's own on the host: no folder, no way up.
fn plain_name(name: &[u8]) -> Result<String, BuildError> {
    let name = std::str::from_utf8(name).map_err(|_| BuildError::Kernel("a file's name is no text"))?;
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    plain.then(|| name.to_owned()).ok_or(BuildError::Kernel("a file's name leads elsewhere"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    std::fs::write(path, bytes).map_err(io_error("write", path))
}

/// The ELF image inside a bzImage (Documentation/arch/x86/boot.rst: `payload_offset`, `payload_length`).
fn decompress(image: &[u8]) -> Result<Vec<u8>, BuildError> {
    const DAMAGED: BuildError = BuildError::Kernel("the kernel image is damaged");
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let version =
        image.get(0x206..0x208).and_then(|version| version.try_into().ok()).map_or(0, u16::from_le_bytes);
    if image.get(0x202..0x206) != Some(b"HdrS") || version < 0x208 {
        return Err(DAMAGED);
    }
    let sectors = match image.get(0x1f1) {
        Some(0) => 4,
        Some(count) => usize::from(*count),
        None => return Err(DAMAGED),
    };
    let start = word(0x248).and_then(|offset| offset.checked_add((sectors + 1) * 512)).ok_or(DAMAGED)?;
    let end = word(0x24c).and_then(|length| start.checked_add(length)).ok_or(DAMAGED)?;
    let payload = image.get(start..end).ok_or(DAMAGED)?;
    let mut elf = Vec::new();
    let result = if payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(payload);
        decoder.map_err(|_| DAMAGED)?.take(KERNEL_LIMIT).read_to_end(&mut elf)
    } else if payload.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        lzma_rust2::XzReader::new(payload, false).take(KERNEL_LIMIT).read_to_end(&mut elf)
    } else {
        return Err(BuildError::Kernel("the kernel is compressed in a way that is not known"));
    };
    result.map_err(|_| DAMAGED)?;
    if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err(DAMAGED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with nothing but its header fields and a payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2048];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&512u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn finds_the_payload() {
        let mut payload = Vec::new();
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut writer = lzma_rust2::XzWriter::new(&mut payload, options).unwrap();
        std::io::Write::write_all(&mut writer, b"\x7fELF and so on").unwrap();
        writer.finish().unwrap();
        payload.extend(14u32.to_le_bytes()); // the size, which Linux appends
        assert_eq!(decompress(&image(&payload)).unwrap(), b"\x7fELF and so on");
    }

    #[test]
    fn damage_is_an_error() {
        let whole = image(b"\x28\xb5\x2f\xfdxx");
        for end in (0..whole.len()).step_by(7) {
            assert!(decompress(&whole[..end]).is_err());
        }
        assert!(decompress(&whole).is_err());
    }

    #[test]
    fn names_stay_in_their_folder() {
        for bad in [&b""[..], b"..", b"a/b", b"\xff"] {
            assert!(plain_name(bad).is_err());
        }
    }
}
