//! `.deb` files (deb(5)): an `ar` archive with a compressed tar of control files and one of data.

use std::io::{self, Read, Write};

/// What is wrong with a `.deb` file.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// It is no `ar` archive, or one of its headers is broken.
    #[error("the package is damaged: {0}")]
    Malformed(&'static str),
    /// A compression that Debian's archive does not use.
    #[error("the package's member {0:?} is compressed in a way that is not known")]
    Compression(String),
    /// Reading, decompressing or writing failed.
    #[error("the package cannot be read")]
    Io(#[from] io::Error),
}

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_LEN: usize = 60;

/// A `.deb` being read from front to back.
pub struct Deb<R> {
    reader: R,
    /// What is left of the current member, and its padding byte.
    left: u64,
    padding: bool,
}

/// A member of the archive: its name and size; its bytes are read from the [`Deb`] itself, with [`Deb::contents`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// `debian-binary`, `control.tar.xz`, `data.tar.xz`, …
    pub name: String,
    /// Its size in bytes, as stored.
    pub size: u64,
}

impl<R: Read> Deb<R> {
    /// Starts reading.
    ///
    /// # Errors
    /// If it is no `ar` archive.
    pub fn open(mut reader: R) -> Result<Self, DebError> {
        let mut magic = [0; MAGIC.len()];
        reader.read_exact(&mut magic).map_err(|_| DebError::Malformed("it is too short"))?;
        if &magic != MAGIC {
            return Err(DebError::Malformed("it is no ar archive"));
        }
        Ok(Self { reader, left: 0, padding: false })
    }

    /// Goes to the next member, over what was not read of the current one.
    ///
    /// # Errors
    /// If a header is broken or reading fails.
    pub fn next_member(&mut self) -> Result<Option<Member>, DebError> {
        let skip = self.left.saturating_add(u64::from(self.padding));
        let skipped = io::copy(&mut self.reader.by_ref().take(skip), &mut io::sink())?;
        // The last member's padding may be missing.
        if skipped < self.left {
            return Err(DebError::Malformed("a member is cut off"));
        }
        (self.left, self.padding) = (0, false);
        let mut header = Vec::with_capacity(HEADER_LEN);
        let limit = u64::try_from(HEADER_LEN).unwrap_or(0);
        if self.reader.by_ref().take(limit).read_to_end(&mut header)? == 0 {
            return Ok(None);
        }
        let name = header.get(..16).and_then(|name| std::str::from_utf8(name).ok());
        let size = header.get(48..58).and_then(|size| std::str::from_utf8(size).ok());
        let (Some(name), Some(size), Some(b"`\n")) = (name, size, header.get(58..60)) else {
            return Err(DebError::Malformed("a member's header is broken"));
        };
        let size = size.trim_end().parse().map_err(|_| DebError::Malformed("a member has no proper size"))?;
        (self.left, self.padding) = (size, size % 2 == 1);
        Ok(Some(Member { name: name.trim_end().trim_end_matches('/').to_owned(), size }))
    }

    /// Goes to the member whose name starts with `prefix` and gives its decompressed bytes.
    ///
    /// # Errors
    /// If there is none, or its compression is not known.
    pub fn contents<'a>(&'a mut self, prefix: &str) -> Result<Box<dyn Read + 'a>, DebError> {
        while let Some(member) = self.next_member()? {
            if member.name.starts_with(prefix) {
                return decompress(&member.name, self);
            }
        }
        Err(DebError::Malformed("a part is missing"))
    }
}

/// Reads the current member as it is stored.
impl<R: Read> Read for Deb<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.by_ref().take(self.left).read(buffer)?;
        self.left = self.left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(read)
    }
}

fn decompress<'a, R: Read + 'a>(name: &str, reader: R) -> Result<Box<dyn Read + 'a>, DebError> {
    match name.rsplit_once('.').map(|(_, kind)| kind) {
        Some("xz") => {
            Ok(Box::new(lzma_rust2::XzReader::new(io::BufReader::with_capacity(1 << 16, reader), true)))
        }
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(reader)
            .map(|decoder| Box::new(decoder) as Box<dyn Read>)
            .map_err(|error| DebError::Io(io::Error::new(io::ErrorKind::InvalidData, error.to_string()))),
        Some("tar") => Ok(Box::new(reader)),
        _ => Err(DebError::Compression(name.to_owned())),
    }
}

/// A place to write to where an earlier part can be corrected.
pub trait Patch: Write {
    /// Overwrites bytes that were written, `at` counted from the first byte that was written.
    ///
    /// # Errors
    /// If writing fails.
    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Writes the same package with its tars uncompressed: dpkg takes it just so, and a guest on a slow processor need not
/// decompress anything. Gives the size written.
///
/// # Errors
/// If the package is damaged or writing fails.
pub fn repack_plain(package: impl Read, out: &mut impl Patch) -> Result<u64, DebError> {
    let mut deb = Deb::open(package)?;
    out.write_all(MAGIC)?;
    let mut at = 8u64;
    while let Some(member) = deb.next_member()? {
        let plain = ["control.tar", "data.tar"].into_iter().find(|plain| member.name.starts_with(plain));
        let name = plain.unwrap_or(member.name.as_str());
        if name.len() > 15 {
            return Err(DebError::Malformed("a member's name is too long"));
        }
        out.write_all(&member_header(name, 0))?;
        let mut contents = match plain {
            Some(_) => decompress(&member.name, &mut deb)?,
            None => Box::new(&mut deb) as Box<dyn Read>,
        };
        let size = io::copy(&mut contents, out)?;
        drop(contents);
        if size % 2 == 1 {
            out.write_all(b"\n")?;
        }
        out.patch(at, &member_header(name, size))?;
        at = at.saturating_add(60).saturating_add(size).saturating_add(size % 2);
    }
    Ok(at)
}

/// Time, owner and mode are of no interest to dpkg.
fn member_header(name: &str, size: u64) -> Vec<u8> {
    format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, "100644").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Memory(Vec<u8>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Patch for Memory {
        fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn sample() -> Vec<u8> {
        let mut deb = MAGIC.to_vec();
        for (name, body) in [
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar.xz", xz(b"control")),
            ("data.tar.xz", xz(b"the data!")),
        ] {
            deb.extend(member_header(name, body.len() as u64));
            deb.extend(&body);
            if body.len() % 2 == 1 {
                deb.push(b'\n');
            }
        }
        deb
    }

    fn data(deb: &[u8]) -> Result<Vec<u8>, DebError> {
        let mut bytes = Vec::new();
        Deb::open(deb)?.contents("data.tar")?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn finds_and_decompresses_a_member() {
        assert_eq!(data(&sample()).unwrap(), b"the data!");
    }

    #[test]
    fn repacking_keeps_the_content() {
        let mut out = Memory::default();
        let size = repack_plain(&sample()[..], &mut out).unwrap();
        assert_eq!(size, out.0.len() as u64);
        assert_eq!(data(&out.0).unwrap(), b"the data!");
        let mut deb = Deb::open(&out.0[..]).unwrap();
        let mut names = Vec::new();
        while let Some(member) = deb.next_member().unwrap() {
            names.push(member.name);
        }
        assert_eq!(names, ["debian-binary", "control.tar", "data.tar"]);
    }

    #[test]
    fn every_cut_is_an_error_or_shorter_and_never_a_panic() {
        let whole = sample();
        for end in 0..whole.len() - 1 {
            assert!(data(&whole[..end]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0x55;
            let _ = data(&broken);
        }
    }
}
