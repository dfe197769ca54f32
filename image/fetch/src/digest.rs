//! Names for content: the digests by which files are asked for.

use std::{fmt, io};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::Digest as _;

/// The digest a file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// SHA-256, as Debian's archive has it.
    Sha256([u8; 32]),
    /// SHA-512, as the npm registry has it.
    Sha512([u8; 64]),
}

/// A text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 or SHA-512 digest")]
pub struct DigestError(pub String);

impl Digest {
    /// Reads lower- or upper-case hexadecimal digits; 64 of them are SHA-256, 128 are SHA-512.
    ///
    /// # Errors
    /// For any other text.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let bytes = decode_hex(text).ok_or_else(|| DigestError(shorten(text)))?;
        Self::from_bytes(&bytes).ok_or_else(|| DigestError(shorten(text)))
    }

    /// Reads the npm registry's notation (`sha512-` and base64, W3C Subresource Integrity).
    ///
    /// # Errors
    /// For any other text.
    pub fn from_integrity(text: &str) -> Result<Self, DigestError> {
        text.strip_prefix("sha512-")
            .and_then(decode_base64)
            .and_then(|bytes| Some(Self::Sha512(bytes.try_into().ok()?)))
            .ok_or_else(|| DigestError(shorten(text)))
    }

    /// SHA-256 of some bytes.
    #[must_use]
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// SHA-256 of everything that can be read.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn sha256_of_reader(mut reader: impl io::Read) -> io::Result<Self> {
        let mut hasher = sha2::Sha256::new();
        io::copy(&mut reader, &mut hasher)?;
        Ok(Self::Sha256(hasher.finalize().into()))
    }

    /// The digits, lower case.
    #[must_use]
    pub fn hex(&self) -> String {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The name of the file that holds this content.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self {
            Self::Sha256(_) => format!("sha256-{}", self.hex()),
            Self::Sha512(_) => format!("sha512-{}", self.hex()),
        }
    }

    /// A hasher of the same kind.
    pub(crate) fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(sha2::Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            32 => Some(Self::Sha256(bytes.try_into().ok()?)),
            64 => Some(Self::Sha512(bytes.try_into().ok()?)),
            _ => None,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file_name())
    }
}

/// A digest being made.
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Self::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| pair.iter().try_fold(0u32, |sum, digit| sum.checked_mul(16)?.checked_add(*digit)))
        .map(|byte| byte.and_then(|byte| u8::try_from(byte).ok()))
        .collect()
}

/// Standard base64 (RFC 4648 §4) with its padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_refuses_the_rest() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::from_hex(text).unwrap().hex(), text);
        assert_eq!(Digest::sha256_of(b""), Digest::from_hex(&text.to_uppercase()).unwrap());
        for bad in ["", "00", "zz", &text[1..], "é"] {
            assert!(Digest::from_hex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn integrity_is_base64_of_sha512() {
        // echo -n abc | openssl dgst -sha512 -binary | base64 -w0
        let text =
            "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";
        let mut hasher = Digest::Sha512([0; 64]).hasher();
        hasher.update(b"abc");
        assert_eq!(Digest::from_integrity(text).unwrap(), hasher.finish());
        assert!(Digest::from_integrity("sha512-AAAA").is_err());
        assert!(Digest::from_integrity("sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=").is_err());
    }
}
