//! Whether an image's files are still what they were when they were made.
//!
//! Reading a gigabyte at every start would cost more than the start. So a file is believed as long as its size and time of
//! change are as recorded; anybody who writes to it changes the latter, and then its content is compared.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use fetch::Digest;
use serde::{Deserialize, Serialize};

/// The sealed files of an image, by their names in its folder.
pub(crate) const SEALED: [&str; 2] = ["base.erofs", "vmlinux"];

/// What a file was when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its name in the image's folder.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub modified: u64,
    /// Its content's SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// What comes of a look at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// As it was made.
    Intact,
    /// The same content with another time, as a copy has it.
    Touched(u64),
    /// Gone, or something else.
    Damaged,
}

impl Seal {
    /// Reads the whole file.
    pub(crate) fn of(folder: &Path, file: &str) -> io::Result<Self> {
        let opened = File::open(folder.join(file))?;
        let meta = opened.metadata()?;
        let sha256 = Digest::sha256_of_reader(opened)?.hex();
        Ok(Self { file: file.to_owned(), bytes: meta.len(), modified: modified(&meta), sha256 })
    }

    /// Compares; reads the file only if its time is another one.
    pub(crate) fn look(&self, folder: &Path) -> Look {
        if !SEALED.contains(&self.file.as_str()) {
            // A later version may seal more. A record that names another path does not make us read it.
            return Look::Intact;
        }
        let Ok(meta) = std::fs::metadata(folder.join(&self.file)) else { return Look::Damaged };
        if !meta.is_file() || meta.len() != self.bytes {
            return Look::Damaged;
        }
        if modified(&meta) == self.modified {
            return Look::Intact;
        }
        match Self::of(folder, &self.file) {
            Ok(now) if now.sha256 == self.sha256 => Look::Touched(now.modified),
            _ => Look::Damaged,
        }
    }
}

fn modified(meta: &Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}
