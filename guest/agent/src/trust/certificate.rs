//! One certificate: its text, and the hash of its subject by which OpenSSL finds it in a folder.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use der::asn1::AnyRef;
use der::{Decode, Reader, SliceReader, Tag, TagNumber, Tagged};
use sha1::{Digest, Sha1};

/// A certificate whose outer form is right. Whether it is any good is for those to say who use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    subject_hash: u32,
}

impl Certificate {
    /// `None` for what is not one certificate in DER.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let subject_hash = subject_hash(der).ok()?;
        Some(Self { der: der.to_vec(), subject_hash })
    }

    /// The hash that OpenSSL names links after.
    pub(crate) fn subject_hash(&self) -> u32 {
        self.subject_hash
    }

    /// The name of its file, without an ending: always the same for the same certificate.
    pub(crate) fn name(&self) -> String {
        let digest = Sha1::digest(&self.der);
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{}{hex}", super::files::OURS)
    }

    /// Its text (RFC 7468).
    pub(crate) fn pem(&self) -> String {
        let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in STANDARD.encode(&self.der).as_bytes().chunks(64) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
        text
    }
}

/// SHA-1 over the subject's canonical form, its first four bytes as a little-endian number (OpenSSL's `X509_NAME_hash_ex`).
fn subject_hash(certificate: &[u8]) -> der::Result<u32> {
    let mut reader = SliceReader::new(certificate)?;
    let mut outer = SliceReader::new(sequence(&mut reader)?)?;
    reader.finish(())?;
    let mut fields = SliceReader::new(sequence(&mut outer)?)?;
    // Algorithm and signature are there, and nothing behind them.
    sequence(&mut outer)?;
    AnyRef::decode(&mut outer)?;
    outer.finish(())?;
    let version = Tag::ContextSpecific { constructed: true, number: TagNumber::N0 };
    if fields.peek_tag()? == version {
        fields.tlv_bytes()?;
    }
    // Serial number, algorithm, issuer, validity (RFC 5280 §4.1).
    for _ in 0..4 {
        fields.tlv_bytes()?;
    }
    let digest = Sha1::digest(canonical(sequence(&mut fields)?)?);
    let [a, b, c, d, ..] = digest[..] else { return Err(der::ErrorKind::Failed.into()) };
    Ok(u32::from_le_bytes([a, b, c, d]))
}

/// The content of the sequence that comes next.
fn sequence<'a>(reader: &mut SliceReader<'a>) -> der::Result<&'a [u8]> {
    let value = AnyRef::decode(reader)?;
    value.tag().assert_eq(Tag::Sequence)?;
    Ok(value.value())
}

/// A name as OpenSSL's `x509_name_canon` has it: its sets one after the other without the sequence around them, text as UTF-8 in lower case
/// without needless spaces.
fn canonical(name: &[u8]) -> der::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut sets = SliceReader::new(name)?;
    while !sets.is_finished() {
        let set = AnyRef::decode(&mut sets)?;
        set.tag().assert_eq(Tag::Set)?;
        let mut attributes = SliceReader::new(set.value())?;
        let mut encoded = Vec::new();
        while !attributes.is_finished() {
            let mut parts = SliceReader::new(sequence(&mut attributes)?)?;
            let mut content = parts.tlv_bytes()?.to_vec();
            let raw = parts.tlv_bytes()?;
            match text(AnyRef::from_der(raw)?) {
                Some(text) => content.extend(tlv(Tag::Utf8String, plain(&text).as_bytes())),
                None => content.extend_from_slice(raw),
            }
            encoded.push(tlv(Tag::Sequence, &content));
        }
        encoded.sort();
        all.extend(tlv(Tag::Set, &encoded.concat()));
    }
    Ok(all)
}

/// The text of a value, for the kinds of strings that OpenSSL compares as text.
fn text(value: AnyRef<'_>) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String => String::from_utf8(bytes.to_vec()).ok(),
        // Latin-1 in practice, and to OpenSSL.
        Tag::PrintableString | Tag::TeletexString | Tag::Ia5String | Tag::VisibleString => {
            Some(bytes.iter().map(|byte| char::from(*byte)).collect())
        }
        Tag::BmpString => {
            let units = bytes
                .chunks_exact(2)
                .map(|unit| unit.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)));
            units.map(char::from_u32).collect()
        }
        _ => None,
    }
}

/// Lower case, no space at the ends, one where there are several. Only ASCII counts as either.
fn plain(text: &str) -> String {
    let space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
    let words: Vec<&str> = text.split(space).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_ascii_lowercase()
}

/// One value in DER: tag, length, content.
fn tlv(tag: Tag, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::from(tag)];
    let length = content.len().to_be_bytes();
    let first = length.iter().position(|byte| *byte != 0).unwrap_or(length.len().saturating_sub(1));
    let length = length.get(first..).unwrap_or_default();
    match length {
        [short] if *short < 0x80 => bytes.push(*short),
        long => {
            bytes.push(0x80 | u8::try_from(long.len()).unwrap_or(0));
            bytes.extend_from_slice(long);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Made with `openssl req -x509`, and what `openssl x509 -subject_hash` says of each.
    pub(crate) const SAMPLES: &[(&str, u32)] = &include!("samples.in");

    pub(crate) fn der_of(base64: &str) -> Vec<u8> {
        let text: String = base64.split_whitespace().collect();
        STANDARD.decode(text).expect("base64")
    }

    #[test]
    fn subjects_hash_as_openssl_hashes_them() {
        for (base64, hash) in SAMPLES {
            let certificate = Certificate::parse(&der_of(base64)).expect("a certificate");
            assert_eq!(format!("{:08x}", certificate.subject_hash()), format!("{hash:08x}"));
        }
    }

    #[test]
    fn the_text_is_the_same_certificate_in_lines_of_64() {
        let der = der_of(SAMPLES[0].0);
        let pem = Certificate::parse(&der).expect("a certificate").pem();
        let lines: Vec<&str> = pem.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 64) && pem.ends_with("-----END CERTIFICATE-----\n"));
        assert_eq!(der_of(&lines[1..lines.len() - 1].concat()), der);
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let der = der_of(SAMPLES[0].0);
        for end in 0..der.len() {
            assert_eq!(Certificate::parse(&der[..end]), None, "the first {end} bytes");
        }
        let twice = [der.clone(), der].concat();
        assert_eq!(Certificate::parse(&twice), None);
        assert_eq!(Certificate::parse(b"-----BEGIN CERTIFICATE-----"), None);
    }

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        assert_eq!(tlv(Tag::Set, b""), [0x31, 0]);
        assert_eq!(tlv(Tag::Set, &[7; 127])[..2], [0x31, 0x7f]);
        assert_eq!(tlv(Tag::Set, &[7; 128])[..3], [0x31, 0x81, 0x80]);
        assert_eq!(tlv(Tag::Set, &[7; 256])[..4], [0x31, 0x82, 1, 0]);
    }
}
