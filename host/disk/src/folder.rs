//! The disk's folder: made, opened and checked, in an order that a crash at any moment leaves either no disk or a whole one.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use backends::BlockBackend;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::sys;
use crate::{Description, Layer, RawFile, RawFileError};

const DESCRIPTION: &CStr = c"disk.json";
const NEW_DESCRIPTION: &CStr = c"disk.json.new";
/// There until a guest has made its file system on the disk and used it.
const UNMADE: &CStr = c"unmade";
/// Longer descriptions are none.
const MAX_DESCRIPTION: u64 = 64 * 1024;

/// What can be wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is a disk already.
    #[error("There is a disk in the folder already")]
    Exists,
    /// There is none.
    #[error("There is no disk in the folder")]
    Missing,
    /// Another sandbox or program uses it.
    #[error("The disk is in use")]
    InUse,
    /// The description is no JSON of the right shape.
    #[error("The disk's description is damaged")]
    Description(#[source] serde_json::Error),
    /// The description is longer than any can be.
    #[error("The disk's description is too long")]
    TooLong,
    /// It describes something else.
    #[error("Not a disk of this program, but \"{0}\"")]
    Format(String),
    /// A newer program made it.
    #[error("The disk has version {found}, this program knows {known}")]
    Version {
        /// Version in the description.
        found: u32,
        /// Version that is understood.
        known: u32,
    },
    /// Not a multiple of 4096 bytes, empty or too large.
    #[error("A disk cannot have {0} bytes")]
    Size(u64),
    /// More layers than one, or none.
    #[error("A disk of {0} layers is not supported")]
    Layers(usize),
    /// A layer's name that is none.
    #[error("\"{0}\" does not name a layer")]
    LayerName(String),
    /// A layer's file is missing.
    #[error("The layer {0} is missing")]
    LayerMissing(String),
    /// A layer's file was cut or grown.
    #[error("The layer {name} has {found} bytes instead of {expected}")]
    LayerSize {
        /// The layer's file.
        name: String,
        /// Bytes by the description.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A layer's file is no file to work with.
    #[error(transparent)]
    Layer(#[from] RawFileError),
    /// The host's file system failed.
    #[error("Cannot {0}")]
    Io(&'static str, #[source] io::Error),
}

fn failed(what: &'static str) -> impl Fn(Errno) -> DiskError {
    move |errno| DiskError::Io(what, errno.into())
}

/// A disk in use. While it is open no other [`open`] of it succeeds, in any process; the descriptors may be handed on and keep
/// the lock.
#[derive(Debug)]
pub struct Disk {
    description: Description,
    /// The layer that is written to; the only one today.
    top: RawFile,
}

/// What [`check`] found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Bytes that the guest sees.
    pub size: u64,
    /// Bytes that the layers take on the host.
    pub allocated: u64,
    /// Whether a guest has made its file system on it; see [`made`].
    pub made: bool,
    /// The layers, bottom first.
    pub layers: Vec<LayerReport>,
}

/// What [`check`] found of a layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LayerReport {
    /// The layer as the description has it.
    #[serde(flatten)]
    pub layer: Layer,
    /// Bytes that it takes on the host.
    pub allocated: u64,
}

/// Makes an empty disk of `size` bytes (a multiple of 4096) in a folder. It takes no space until it is written. The caller holds
/// the lock of the sandbox that the folder belongs to: two that make a disk in one folder at once may take away each other's layer.
///
/// # Errors
/// There is one already, the size is impossible, or the host's file system fails; then there is no disk.
pub fn create(folder: BorrowedFd<'_>, size: u64) -> Result<(), DiskError> {
    let description = Description::new(size)?;
    match rustix::fs::statat(folder, DESCRIPTION, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Ok(_) => return Err(DiskError::Exists),
        Err(errno) => return Err(failed("look into the disk's folder")(errno)),
    }
    for layer in &description.layers {
        // Without a description it belongs to nothing: a creation was interrupted.
        remove_if_there(folder, layer.file.as_str())?;
        let file = make(folder, layer.file.as_str())?;
        rustix::fs::ftruncate(&file, size).map_err(failed("set the disk's size"))?;
        rustix::fs::fsync(&file).map_err(failed("store the disk"))?;
    }
    remove_if_there(folder, UNMADE)?;
    make(folder, UNMADE)?;
    // Not every file system keeps two changes of a folder in order: a description without the mark would be of a damaged disk.
    sync_folder(folder)?;
    remove_if_there(folder, NEW_DESCRIPTION)?;
    let mut file = File::from(make(folder, NEW_DESCRIPTION)?);
    file.write_all(&description.to_json()?)
        .map_err(|error| DiskError::Io("write the disk's description", error))?;
    rustix::fs::fsync(&file).map_err(failed("store the disk's description"))?;
    // Two at once: one wins, the other learns it here.
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(folder, NEW_DESCRIPTION, folder, DESCRIPTION, flags) {
        Err(Errno::EXIST) => return Err(DiskError::Exists),
        other => other.map_err(failed("store the disk's description"))?,
    }
    sync_folder(folder)
}

/// Opens the disk in a folder for use. One that [`made`] was never said of is blank again: what is on it is what a guest left that was
/// killed while it made its file system.
///
/// # Errors
/// There is none, it is in use, or something about it is not as described; nothing is repaired or guessed.
pub fn open(folder: BorrowedFd<'_>) -> Result<Disk, DiskError> {
    let description = read_description(folder)?;
    let layer = description.layers.last().ok_or(DiskError::Layers(0))?;
    let file = open_layer(folder, &layer.file, OFlags::RDWR)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(DiskError::InUse),
        other => other.map_err(failed("lock the disk"))?,
    }
    if is_unmade(folder)? {
        // Whichever length a blanking that was cut short has left.
        rustix::fs::ftruncate(&file, 0)
            .and_then(|()| rustix::fs::ftruncate(&file, description.size))
            .map_err(failed("make the disk blank again"))?;
    }
    check_size(&file, &layer.file, description.size)?;
    Disk::from_parts(description, vec![file])
}

/// Notes that a guest has made its file system on the disk and uses it: from here on it is never made blank. To be called before
/// anybody can keep something on it; more than once does no harm.
///
/// # Errors
/// The host's file system fails; then the disk may not be used.
pub fn made(folder: BorrowedFd<'_>) -> Result<(), DiskError> {
    if !is_unmade(folder)? {
        return Ok(());
    }
    let description = read_description(folder)?;
    for layer in &description.layers {
        let file = open_layer(folder, &layer.file, OFlags::RDWR)?;
        rustix::fs::fsync(&file).map_err(failed("store the disk"))?;
    }
    remove_if_there(folder, UNMADE)?;
    sync_folder(folder)
}

/// Whether a guest has ever made its file system on the disk in a folder: else there is nothing on it to lose.
///
/// # Errors
/// The folder cannot be looked into.
pub fn is_made(folder: BorrowedFd<'_>) -> Result<bool, DiskError> {
    match rustix::fs::statat(folder, DESCRIPTION, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(!is_unmade(folder)?),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("look into the disk's folder")(errno)),
    }
}

fn is_unmade(folder: BorrowedFd<'_>) -> Result<bool, DiskError> {
    match rustix::fs::statat(folder, UNMADE, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("look into the disk's folder")(errno)),
    }
}

/// Looks whether the disk in a folder is whole, in use or not, and changes nothing.
///
/// # Errors
/// As [`open`] has them, but for [`DiskError::InUse`].
pub fn check(folder: BorrowedFd<'_>) -> Result<Report, DiskError> {
    let description = read_description(folder)?;
    let mut layers = Vec::with_capacity(description.layers.len());
    for layer in &description.layers {
        let file = open_layer(folder, &layer.file, OFlags::RDONLY)?;
        let allocated = check_size(&file, &layer.file, description.size)?;
        RawFile::new(file, description.size, true)?;
        layers.push(LayerReport { layer: layer.clone(), allocated });
    }
    let allocated = layers.iter().map(|layer| layer.allocated).sum();
    Ok(Report { size: description.size, allocated, made: !is_unmade(folder)?, layers })
}

/// Opens the disk in a folder to look at it, for a [`crate::Preview`]: its description, and its one layer open for reading. Until
/// the descriptor and all that came of it are closed no [`open`] of the disk succeeds; more looks do.
///
/// # Errors
/// As [`open`] has them; nothing is made blank.
pub fn open_to_look(folder: BorrowedFd<'_>) -> Result<(Description, OwnedFd), DiskError> {
    let description = read_description(folder)?;
    let layer = description.layers.last().ok_or(DiskError::Layers(0))?;
    let file = open_layer(folder, &layer.file, OFlags::RDONLY)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => return Err(DiskError::InUse),
        other => other.map_err(failed("lock the disk"))?,
    }
    check_size(&file, &layer.file, description.size)?;
    Ok((description, file))
}

impl Disk {
    /// A disk from its description and the open files of its layers, bottom first, as a process has them that may open none itself.
    ///
    /// # Errors
    /// The files do not fit the description.
    pub fn from_parts(description: Description, layers: Vec<OwnedFd>) -> Result<Disk, DiskError> {
        let count = layers.len();
        let mut layers = layers.into_iter();
        match (layers.next(), layers.next()) {
            (Some(top), None) if description.layers.len() == 1 => {
                let top = RawFile::new(top, description.size, false)?;
                Ok(Disk { description, top })
            }
            _ => Err(DiskError::Layers(count)),
        }
    }

    /// What the disk consists of.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Descriptors of the layers, bottom first, to hand on with the description.
    pub fn layer_descriptors(&self) -> Vec<impl AsFd> {
        vec![self.top.descriptor()]
    }
}

impl BlockBackend for Disk {
    fn len(&self) -> u64 {
        self.top.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.top.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.top.write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.top.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.top.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.top.write_zeroes(offset, len)
    }
}

fn read_description(folder: BorrowedFd<'_>) -> Result<Description, DiskError> {
    let file = match open_beneath(folder, DESCRIPTION, OFlags::RDONLY) {
        Err(Errno::NOENT) => return Err(DiskError::Missing),
        other => other.map_err(failed("open the disk's description"))?,
    };
    let mut text = Vec::new();
    let limit = MAX_DESCRIPTION + 1;
    File::from(file)
        .take(limit)
        .read_to_end(&mut text)
        .map_err(|error| DiskError::Io("read the disk's description", error))?;
    if text.len() as u64 == limit {
        return Err(DiskError::TooLong);
    }
    Description::parse(&text)
}

fn open_layer(folder: BorrowedFd<'_>, name: &str, access: OFlags) -> Result<OwnedFd, DiskError> {
    match open_beneath(folder, name, access) {
        Err(Errno::NOENT) => Err(DiskError::LayerMissing(name.to_owned())),
        other => other.map_err(failed("open the disk's layer")),
    }
}

/// Checks a layer's length exactly, and returns the bytes that it takes on the host.
fn check_size(file: &OwnedFd, name: &str, expected: u64) -> Result<u64, DiskError> {
    let stat = rustix::fs::fstat(file).map_err(failed("look at the disk's layer"))?;
    let found = u64::try_from(stat.st_size).unwrap_or(0);
    if found != expected {
        return Err(DiskError::LayerSize { name: name.to_owned(), expected, found });
    }
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512))
}

fn open_beneath(
    folder: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    access: OFlags,
) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    sys::open_beneath(folder, name, flags)
}

fn make(folder: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, DiskError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed("make the disk's files"))
}

fn remove_if_there(folder: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<(), DiskError> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("remove what is left of an earlier disk")(errno)),
    }
}

fn sync_folder(folder: BorrowedFd<'_>) -> Result<(), DiskError> {
    // The folder may be known by an O_PATH descriptor, which cannot be synced.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable =
        rustix::fs::openat(folder, c".", flags, Mode::empty()).map_err(failed("open the disk's folder"))?;
    rustix::fs::fsync(&readable).map_err(failed("store the disk's folder"))
}
