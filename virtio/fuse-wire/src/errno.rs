//! Linux error numbers, as the guest's kernel reads them. They are the guest's, whatever the host is.

use std::fmt;
use std::io;

/// A positive Linux error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Errno = Errno($value);)*
        }

        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    PERM = 1;
    /// No such file or directory.
    NOENT = 2;
    /// Input/output error.
    IO = 5;
    /// No such device or address (also: nothing to seek to).
    NXIO = 6;
    /// Argument list too long.
    TOOBIG = 7;
    /// Bad file descriptor.
    BADF = 9;
    /// Out of memory.
    NOMEM = 12;
    /// Permission denied.
    ACCESS = 13;
    /// File exists.
    EXIST = 17;
    /// Link across devices.
    XDEV = 18;
    /// Not a directory.
    NOTDIR = 20;
    /// Is a directory.
    ISDIR = 21;
    /// Invalid argument.
    INVAL = 22;
    /// Too many open files in the system.
    NFILE = 23;
    /// Not a typewriter: no such ioctl.
    NOTTY = 25;
    /// File too large.
    FBIG = 27;
    /// No space left on device.
    NOSPC = 28;
    /// Read-only file system.
    ROFS = 30;
    /// Result out of range: the buffer is too small.
    RANGE = 34;
    /// File name too long.
    NAMETOOLONG = 36;
    /// Operation unknown.
    NOSYS = 38;
    /// Directory not empty.
    NOTEMPTY = 39;
    /// Too many symbolic links.
    LOOP = 40;
    /// No such attribute.
    NODATA = 61;
    /// Protocol error.
    PROTO = 71;
    /// Value too large.
    OVERFLOW = 75;
    /// Operation not supported.
    NOTSUP = 95;
    /// Stale handle: what the guest means is not there any more.
    STALE = 116;
}

impl Errno {
    /// The error number that Linux gives, or [`Errno::IO`] for a value outside 1..=4095.
    pub fn from_raw(raw: i32) -> Errno {
        if (1..=4095).contains(&raw) { Errno(raw) } else { Errno::IO }
    }

    /// The positive number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        error.raw_os_error().map_or(Errno::IO, Errno::from_raw)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
