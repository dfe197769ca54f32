//! The two images a build starts from: the essential packages' files, and the disk of all packages.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use debian::{Deb, Patch, Role, repack_plain};
use erofs::{FileWriter, Kind, Metadata, TarReader, Writer};
use fetch::Meter;

use crate::build::{PMEM_ALIGN, Package};
use crate::{BuildError, io_error};

/// What dpkg is told to leave out, the host leaves out too.
const UNWANTED: [&[u8]; 6] = [
    b"usr/share/doc/",
    b"usr/share/man/",
    b"usr/share/info/",
    b"usr/share/locale/",
    b"usr/share/lintian/",
    b"boot/",
];

fn wanted(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.ends_with(b"/copyright")
        || !UNWANTED.iter().any(|unwanted| path.starts_with(unwanted) && path != *unwanted)
}

/// Writes the image that the build boots: files only, no package is installed in it.
pub(crate) fn write_stage1(packages: &[Package], file: File, meter: &Meter<'_>) -> Result<(), BuildError> {
    let mut image = Writer::new(file)?;
    image.identify([0; 16], "viv-stage1", 0);
    image.align_end(PMEM_ALIGN);
    for package in packages.iter().filter(|package| package.role != Role::Install) {
        let reader = BufReader::new(File::open(&package.file).map_err(io_error("open", &package.file))?);
        let mut deb = Deb::open(reader)?;
        add_files(&mut image, TarReader::new(deb.contents("data.tar")?))?;
        meter.add(1, &package.name);
    }
    for folder in ["dev", "proc", "sys", "run", "tmp", "var/lib/dpkg"] {
        if !image.exists(folder.as_bytes()) {
            image.directory(folder.as_bytes(), Metadata { mode: 0o755, ..Metadata::default() })?;
        }
    }
    image.finish().map(drop).map_err(BuildError::from)
}

/// Adds a package's files. Kernel modules are decompressed: the host does that once, every guest would do it at every load.
fn add_files(image: &mut Writer<File>, mut tar: TarReader<impl Read>) -> Result<(), BuildError> {
    while let Some(entry) = tar.next_entry()? {
        let plain = entry
            .path
            .strip_suffix(b".xz")
            .filter(|path| path.ends_with(b".ko") && entry.kind == Kind::Regular);
        match plain {
            Some(path) => {
                let module = lzma_rust2::XzReader::new(BufReader::with_capacity(1 << 16, &mut tar), false);
                image.file(path, entry.meta, module)?;
            }
            None if wanted(&entry.path) => image.add_entry(entry, &mut tar)?,
            None => {}
        }
    }
    Ok(())
}

/// Writes the disk of packages: `debs/*.deb` with uncompressed contents, and the lists `stage1` and `install` of their names in order.
pub(crate) fn write_packages(packages: &[Package], file: File, meter: &Meter<'_>) -> Result<(), BuildError> {
    let mut image = Writer::new(file)?;
    image.identify([0; 16], "viv-packages", 0);
    let meta = || Metadata { mode: 0o644, ..Metadata::default() };
    for (role, list) in [(Role::Stage1, "stage1"), (Role::Install, "install")] {
        let mut names = String::new();
        for package in packages.iter().filter(|package| package.role == role) {
            let name = format!("{}.deb", package.name);
            let to = image.file_writer(format!("debs/{name}").as_bytes(), meta())?;
            repack(&package.file, to)?;
            names.push_str(&name);
            names.push('\n');
            meter.add(1, &package.name);
        }
        image.file(list.as_bytes(), meta(), names.as_bytes())?;
    }
    image.finish().map(drop).map_err(BuildError::from)
}

fn repack(package: &Path, to: FileWriter<'_, File>) -> Result<(), BuildError> {
    let reader = BufReader::with_capacity(1 << 16, File::open(package).map_err(io_error("open", package))?);
    let mut to = InImage(to);
    repack_plain(reader, &mut to)?;
    to.0.finish().map(drop).map_err(BuildError::from)
}

/// A file in an image as a place to repack to.
struct InImage<'a>(FileWriter<'a, File>);

impl Write for InImage<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Patch for InImage<'_> {
    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.patch(at, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manuals_stay_out_and_licences_in() {
        for yes in
            ["./usr/bin/bash", "./usr/share/doc/", "./usr/share/doc/bash/copyright", "usr/share/zoneinfo/UTC"]
        {
            assert!(wanted(yes.as_bytes()), "{yes}");
        }
        for no in ["./usr/share/doc/bash/README", "./usr/share/man/man1/bash.1.gz", "./boot/vmlinuz-6"] {
            assert!(!wanted(no.as_bytes()), "{no}");
        }
    }
}
