//! A name of one directory entry, checked.
//!
//! This is the wall against `..` and `/`: a [`Name`] can only be made by [`Name::new`], so whoever holds one holds a
//! single path component. What the host makes of the component (a symbolic link, say) is the file server's part.

use std::ffi::CStr;
use std::fmt;

use crate::Errno;

/// One path component: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`. Any other bytes, not only UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a CStr);

/// The longest name in bytes.
const NAME_MAX: usize = 255;

impl<'a> Name<'a> {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Errno::NAMETOOLONG`] for more than 255 bytes, [`Errno::INVAL`] for what is no single component.
    pub fn new(text: &'a CStr) -> Result<Name<'a>, Errno> {
        let bytes = text.to_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(Name(text))
    }

    /// The name with its terminating NUL, for system calls.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The bytes without NUL.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Escaped: a guest's name must not write control sequences into a log.
        write!(f, "\"{}\"", self.0.to_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_single_components_only() {
        for good in [c"a", c"...", c".git", c"a b", c"\xff\xfe", c"\\", c"..a", c"a:"] {
            assert_eq!(Name::new(good).unwrap().as_bytes(), good.to_bytes());
        }
        for bad in [c"", c".", c"..", c"/", c"a/b", c"../a", c"/etc", c"a/", c"a/.."] {
            assert_eq!(Name::new(bad), Err(Errno::INVAL), "{bad:?}");
        }
        let mut long = vec![b'x'; 255];
        long.push(0);
        assert!(Name::new(CStr::from_bytes_with_nul(&long).unwrap()).is_ok());
        long.insert(0, b'x');
        assert_eq!(Name::new(CStr::from_bytes_with_nul(&long).unwrap()), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn a_log_line_cannot_be_forged() {
        assert_eq!(format!("{:?}", Name::new(c"\x1b[2J\n").unwrap()), r#""\x1b[2J\n""#);
    }
}
