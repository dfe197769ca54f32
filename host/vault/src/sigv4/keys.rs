//! The signing key, which is derived from the secret access key for one day, region and service.

use std::fmt::Write;

use hmac::Mac;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::parse::Scope;
use crate::secret::Secret;
use crate::shape::keyed;

/// Overwritten when it is dropped.
pub(crate) struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// For a day (`20150830`) and scope.
    pub(crate) fn derive(secret: &Secret, day: &str, scope: &Scope) -> Self {
        let first = Zeroizing::new([b"AWS4", secret.expose()].concat());
        let day = step(&first, day);
        let region = step(&*day, &scope.region);
        let service = step(&*region, &scope.service);
        Self(step(&*service, "aws4_request"))
    }

    /// The signature of a text, in hexadecimal.
    pub(crate) fn sign(&self, text: &str) -> String {
        hex(&*step(&*self.0, text))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[signing key]")
    }
}

fn step(key: &[u8], text: &str) -> Zeroizing<[u8; 32]> {
    let mut mac = keyed(key);
    mac.update(text.as_bytes());
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// SHA-256 in hexadecimal.
pub(crate) fn hex_of_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// In lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
