//! Signatures of host keys: RFC 8709 (Ed25519), RFC 5656 (ECDSA), RFC 8332 (RSA with SHA-2).

use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};

use crate::wire::Reader;

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unverified {
    /// The key is of a kind that is not known here.
    Kind,
    /// It is not the key's, or cannot be read.
    Signature,
}

/// Whether `signature` is that of `key` under `data`; both are encoded as on the wire (RFC 4253, section 6.6).
pub(crate) fn verify(key: &[u8], data: &[u8], signature: &[u8]) -> Result<(), Unverified> {
    let (mut key, mut signature) = (Reader(key), Reader(signature));
    let kind = key.string().ok_or(Unverified::Kind)?;
    let (Some(algorithm), Some(blob), true) = (signature.string(), signature.string(), signature.is_empty())
    else {
        return Err(Unverified::Signature);
    };
    let verified = match kind {
        b"ssh-ed25519" if algorithm == kind => ed25519(key, data, blob),
        b"ecdsa-sha2-nistp256" if algorithm == kind => ecdsa::<32>(key, data, blob),
        b"ecdsa-sha2-nistp384" if algorithm == kind => ecdsa::<48>(key, data, blob),
        b"ssh-rsa" => rsa(key, data, algorithm, blob),
        b"ssh-ed25519" | b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" => None,
        _ => return Err(Unverified::Kind),
    };
    verified.ok_or(Unverified::Signature)
}

fn ed25519(mut key: Reader<'_>, data: &[u8], blob: &[u8]) -> Option<()> {
    let public = key.string().filter(|_| key.is_empty())?;
    UnparsedPublicKey::new(&ED25519, public).verify(data, blob).ok()
}

/// With numbers of so many bytes.
fn ecdsa<const SIZE: usize>(mut key: Reader<'_>, data: &[u8], blob: &[u8]) -> Option<()> {
    let _curve = key.string()?;
    let point = key.string().filter(|_| key.is_empty())?;
    let mut numbers = Reader(blob);
    let (r, s) = (numbers.string()?, numbers.string().filter(|_| numbers.is_empty())?);
    let fixed = [padded::<SIZE>(r)?, padded::<SIZE>(s)?].concat();
    let algorithm = if SIZE == 32 { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P384_SHA384_FIXED };
    UnparsedPublicKey::new(algorithm, point).verify(data, &fixed).ok()
}

fn rsa(mut key: Reader<'_>, data: &[u8], algorithm: &[u8], blob: &[u8]) -> Option<()> {
    let (e, n) = (number(key.string()?), number(key.string()?));
    let parameters = match algorithm {
        b"rsa-sha2-512" => &RSA_PKCS1_2048_8192_SHA512,
        b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
        // SHA-1.
        _ => return None,
    };
    RsaPublicKeyComponents { n, e }.verify(parameters, data, blob).ok().filter(|()| key.is_empty())
}

/// A positive number without the zeros before it (RFC 4251, `mpint`).
fn number(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

fn padded<const SIZE: usize>(bytes: &[u8]) -> Option<[u8; SIZE]> {
    let digits = number(bytes);
    let mut all = [0; SIZE];
    let start = SIZE.checked_sub(digits.len())?;
    all.get_mut(start..)?.copy_from_slice(digits);
    Some(all)
}
