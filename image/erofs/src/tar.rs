//! Reading tar archives: POSIX ustar and pax, and GNU's long names; with extended attributes.
//!
//! An own reader because attributes hold binary values (`security.capability`), and because a member's numbers must be
//! checked before anything is done by them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::{Device, ErofsError, Metadata};

const RECORD: u64 = 512;
/// Longest long name or set of pax records that is looked at; attributes are at most 64 KiB each.
const EXTRA_LIMIT: u64 = 4 << 20;
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its bytes are read from the [`TarReader`].
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name for an earlier entry with this path.
    HardLink(Vec<u8>),
    /// Anything else that the kernel knows.
    Device(Device),
}

/// An entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Owner, mode, time, attributes.
    pub meta: Metadata,
    /// How many bytes it has.
    pub size: u64,
}

/// An archive being read from front to back.
pub struct TarReader<R> {
    reader: R,
    /// What is left of the current entry, and the padding behind it.
    left: u64,
    padding: u64,
    global: Records,
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

impl<R: Read> TarReader<R> {
    /// Reads from `reader`, which should be buffered.
    pub const fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0, global: Records::new() }
    }

    /// Goes to the next entry, over what was not read of the current one; `None` at the archive's end.
    ///
    /// # Errors
    /// If the archive is damaged or reading fails.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ErofsError> {
        let mut records = Records::new();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(field(&header, 124, 12))?;
            match header.get(156) {
                Some(b'x') => records = parse_records(&self.extra(size)?)?,
                Some(b'g') => {
                    let more = parse_records(&self.extra(size)?)?;
                    self.global.extend(more);
                }
                Some(b'L') => long_name = Some(trimmed(&self.extra(size)?).to_vec()),
                Some(b'K') => long_link = Some(trimmed(&self.extra(size)?).to_vec()),
                Some(_) => {
                    let mut all = self.global.clone();
                    all.extend(records);
                    return self.entry(&header, size, &all, long_name, long_link).map(Some);
                }
                None => return Err(ErofsError::Tar("a header is cut off")),
            }
        }
    }

    fn entry(
        &mut self,
        header: &[u8],
        size: u64,
        records: &Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ErofsError> {
        let record = |name: &str| records.get(name.as_bytes());
        let decimal = |name: &str| {
            let parse =
                |text: &Vec<u8>| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
            record(name).map(|text| parse(text).ok_or(ErofsError::Tar("a pax number is none"))).transpose()
        };
        let path = record("path").cloned().or(long_name).unwrap_or_else(|| ustar_path(header));
        let link = record("linkpath")
            .cloned()
            .or(long_link)
            .unwrap_or_else(|| trimmed(field(header, 157, 100)).to_vec());
        let size = decimal("size")?.unwrap_or(size);
        let id =
            |value: u64| u32::try_from(value).map_err(|_| ErofsError::Tar("an owner's number is too large"));
        let (mtime, mtime_nsec) = match record("mtime") {
            Some(text) => pax_time(text).ok_or(ErofsError::Tar("a pax time is none"))?,
            None => (number(field(header, 136, 12)).unwrap_or(0), 0),
        };
        let mode = u16::try_from(number(field(header, 100, 8))? & 0o7777).unwrap_or(0);
        let xattrs = records
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_KEY)?.to_vec(), value.clone())));
        let meta = Metadata {
            mode,
            uid: id(decimal("uid")?.map_or_else(|| number(field(header, 108, 8)), Ok)?)?,
            gid: id(decimal("gid")?.map_or_else(|| number(field(header, 116, 8)), Ok)?)?,
            mtime,
            mtime_nsec,
            xattrs: xattrs.collect(),
        };
        let dev = || -> Result<(u32, u32), ErofsError> {
            Ok((id(number(field(header, 329, 8))?)?, id(number(field(header, 337, 8))?)?))
        };
        let kind = match header.get(156) {
            Some(b'0' | b'\0' | b'7') if path.ends_with(b"/") => Kind::Directory,
            Some(b'0' | b'\0' | b'7') => Kind::Regular,
            Some(b'1') => Kind::HardLink(link),
            Some(b'2') => Kind::Symlink(link),
            Some(b'3') => dev().map(|(major, minor)| Kind::Device(Device::Character(major, minor)))?,
            Some(b'4') => dev().map(|(major, minor)| Kind::Device(Device::Block(major, minor)))?,
            Some(b'5') => Kind::Directory,
            Some(b'6') => Kind::Device(Device::Fifo),
            _ => return Err(ErofsError::Tar("an entry is of a kind that is not known")),
        };
        // Only regular files have bytes, whatever the header says of others; hard links in pax archives may have some too.
        let stored = if matches!(kind, Kind::Regular | Kind::HardLink(_)) { size } else { 0 };
        self.start(stored);
        Ok(Entry { path, kind, meta, size: stored })
    }

    fn start(&mut self, size: u64) {
        self.left = size;
        self.padding = size.checked_next_multiple_of(RECORD).map_or(0, |whole| whole - size);
    }

    fn skip_rest(&mut self) -> Result<(), ErofsError> {
        let rest = self.left.saturating_add(self.padding);
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())?;
        (self.left, self.padding) = (0, 0);
        if skipped == rest { Ok(()) } else { Err(ErofsError::Tar("it is cut off")) }
    }

    /// The next header record, its checksum verified; `None` at the end.
    fn header(&mut self) -> Result<Option<Vec<u8>>, ErofsError> {
        let mut header = Vec::with_capacity(512);
        self.reader.by_ref().take(RECORD).read_to_end(&mut header)?;
        if header.len() != 512 {
            return Err(ErofsError::Tar("it is cut off"));
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
            .sum();
        if number(field(&header, 148, 8))? != sum {
            return Err(ErofsError::Tar("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extra(&mut self, size: u64) -> Result<Vec<u8>, ErofsError> {
        if size > EXTRA_LIMIT {
            return Err(ErofsError::Tar("a name or attribute is too long"));
        }
        self.start(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()) == Ok(size) { Ok(bytes) } else { Err(ErofsError::Tar("it is cut off")) }
    }
}

/// Reads the current entry's bytes. An archive that ends early is an error here, not a short file.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.left == 0 {
            return Ok(0);
        }
        let read = self.reader.by_ref().take(self.left).read(buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(read)
    }
}

fn field(header: &[u8], at: usize, len: usize) -> &[u8] {
    header.get(at..at.saturating_add(len)).unwrap_or_default()
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn ustar_path(header: &[u8]) -> Vec<u8> {
    let name = trimmed(field(header, 0, 100));
    let posix = field(header, 257, 6) == b"ustar\0";
    let prefix = if posix { trimmed(field(header, 345, 155)) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Octal digits, or a big-endian number marked by the highest bit (GNU).
fn number(bytes: &[u8]) -> Result<u64, ErofsError> {
    const BAD: ErofsError = ErofsError::Tar("a number is none");
    match bytes.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => {
            let start = u64::from(first & 0x7f);
            rest.iter().try_fold(start, |sum, byte| Some(sum.checked_mul(256)? + u64::from(*byte))).ok_or(BAD)
        }
        _ => {
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
            let digit = |sum: u64, byte: &u8| match byte {
                b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
                _ => None,
            };
            text.iter().try_fold(0, digit).ok_or(BAD)
        }
    }
}

/// `<length> <key>=<value>\n`, the length counting the whole record.
fn parse_records(mut bytes: &[u8]) -> Result<Records, ErofsError> {
    const BAD: ErofsError = ErofsError::Tar("a pax record is broken");
    let mut records = Records::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
        let text = bytes.get(..space).and_then(|digits| std::str::from_utf8(digits).ok());
        let len: usize = text.and_then(|text| text.parse().ok()).ok_or(BAD)?;
        let record = bytes.get(space + 1..len).and_then(|record| record.strip_suffix(b"\n")).ok_or(BAD)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
        let (key, value) = record.split_at(equals);
        records.insert(key.to_vec(), value.get(1..).unwrap_or_default().to_vec());
        bytes = bytes.get(len..).ok_or(BAD)?;
    }
    Ok(records)
}

/// Seconds with an optional fraction; times before 1970 count as 1970.
fn pax_time(text: &[u8]) -> Option<(u64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('-') {
        return Some((0, 0));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some((seconds.parse().ok()?, digits.parse().ok()?))
}

#[cfg(test)]
mod tests;
