//! Files between the host and a guest, as tar archives over a session. The guest's side is a `tar` in the guest; the
//! host's is here, because nothing of what a guest sends may be believed: not the names, not the links, not the sizes.

mod holes;
mod pack;
mod place;
mod unpack;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

pub use self::pack::{pack, pack_content};
pub use self::place::{Source, open_folder, source, target};
pub use self::unpack::{Done, unpack};

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The guest's archive has a name that was not asked for.
    #[error("the sandbox sent \"{0}\", which was not asked for, and it was not written")]
    NotAsked(String),
    /// The guest's archive cannot be understood.
    #[error("the sandbox sent an archive that is damaged")]
    Archive(#[source] io::Error),
    /// What is there on the host is no regular file, and a copy would take its place.
    #[error("{name} was not written: {kind} is there, and a copy replaces only files")]
    InTheWay {
        /// The name beneath what is copied.
        name: String,
        /// What it is: "a device".
        kind: &'static str,
    },
    /// A file says that it is larger than the host has room for.
    #[error("{name} has {size} bytes, and there is room for {room}")]
    TooLarge {
        /// The name beneath what is copied.
        name: String,
        /// Its bytes, holes included.
        size: u64,
        /// Bytes that are free where it would be written.
        room: u64,
    },
    /// A file whose size nobody tells goes on and on.
    #[error("{name} does not say how large it is, and has more than {} MiB", MOST_UNTOLD >> 20)]
    Endless {
        /// The name beneath what is copied.
        name: String,
    },
    /// A file of the host could not be read or written.
    #[error("{what} {name}: {}", crate::error::in_words(source))]
    File {
        /// What was tried, to precede the name: "cannot write".
        what: &'static str,
        /// The name beneath what is copied.
        name: String,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The other side takes no more. What it said itself says why.
    #[error("the copy was broken off")]
    Broken(#[source] io::Error),
}

/// The most that is taken of a file that does not say its size, as those in `/proc`, in bytes: it is kept in memory meanwhile.
pub const MOST_UNTOLD: u64 = 64 << 20;

/// All of a file whose size is not known before its end, called `name`.
pub fn read_untold(file: impl Read, name: &[u8]) -> Result<Vec<u8>, CopyError> {
    let mut content = Vec::new();
    file.take(MOST_UNTOLD + 1)
        .read_to_end(&mut content)
        .map_err(|error| failed("cannot read", name, error))?;
    if content.len() as u64 > MOST_UNTOLD {
        return Err(CopyError::Endless { name: String::from_utf8_lossy(name).into_owned() });
    }
    Ok(content)
}

fn failed(what: &'static str, name: &[u8], source: impl Into<io::Error>) -> CopyError {
    CopyError::File { what, name: String::from_utf8_lossy(name).into_owned(), source: source.into() }
}

/// `folder/name`.
fn join(folder: &[u8], name: &[u8]) -> OsString {
    let joined = if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() };
    OsStr::from_bytes(&joined).to_owned()
}

#[cfg(test)]
mod tests;
