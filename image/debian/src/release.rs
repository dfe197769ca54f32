//! A suite's `InRelease`: signed by Debian, and from there on digests.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fetch::Digest;
use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::Signature;
use pgp::types::{KeyDetails, VerifyingKey};

use crate::Paragraphs;

/// The keys of Debian 13's archive, security archive and stable release (see `keys/README.md`).
const DEBIAN_KEYS: [&str; 3] = [
    include_str!("../keys/debian-archive-trixie-automatic.asc"),
    include_str!("../keys/debian-archive-trixie-security-automatic.asc"),
    include_str!("../keys/debian-archive-trixie-stable.asc"),
];

/// Why a release file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A key file cannot be read.
    #[error("the archive key cannot be read: {0}")]
    Key(String),
    /// It is no clear-signed text.
    #[error("the release file is not a signed text: {0}")]
    Malformed(String),
    /// None of the signatures is a valid one by a key that is trusted.
    #[error("the release file is not signed by any of Debian's archive keys")]
    Untrusted,
    /// It is for another suite than the one that was asked for.
    #[error("the release file is for {found:?}, not for {wanted:?}")]
    OtherSuite {
        /// What was asked for.
        wanted: String,
        /// What the file says it is.
        found: String,
    },
    /// Its time is over: somebody may be holding newer versions back.
    #[error(
        "the release file of {suite} was valid until {until}; the mirror is out of date, or this machine's clock is wrong"
    )]
    Expired {
        /// The suite.
        suite: String,
        /// The field's text.
        until: String,
    },
    /// It was made in the future.
    #[error(
        "the release file of {suite} is dated {date}, which is in the future; is this machine's clock right?"
    )]
    NotYet {
        /// The suite.
        suite: String,
        /// The field's text.
        date: String,
    },
    /// A field that is needed is missing or cannot be read.
    #[error("the release file has no proper {0}")]
    Field(&'static str),
}

/// The keys whose word counts.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
}

impl Keyring {
    /// Debian's own archive keys.
    ///
    /// # Errors
    /// Never for the files as shipped (there is a test).
    pub fn debian() -> Result<Self, ReleaseError> {
        Self::from_armored(DEBIAN_KEYS)
    }

    /// Keys from ASCII-armoured texts.
    ///
    /// # Errors
    /// If one is no key.
    pub fn from_armored<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, ReleaseError> {
        let key = |text| {
            SignedPublicKey::from_string(text)
                .map(|(key, _)| key)
                .map_err(|error| ReleaseError::Key(error.to_string()))
        };
        Ok(Self { keys: texts.into_iter().map(key).collect::<Result<_, _>>()? })
    }

    /// The text inside a clear-signed message, if any of its signatures is good.
    fn signed_text(&self, message: &str) -> Result<String, ReleaseError> {
        let (message, _) = CleartextSignedMessage::from_string(message)
            .map_err(|error| ReleaseError::Malformed(error.to_string()))?;
        let text = message.signed_text();
        let good = message.signatures().iter().any(|signature| self.verifies(signature, text.as_bytes()));
        good.then_some(text).ok_or(ReleaseError::Untrusted)
    }

    fn verifies(&self, signature: &Signature, text: &[u8]) -> bool {
        let strong = [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
        if !signature.hash_alg().is_some_and(|hash| strong.contains(&hash)) {
            return false;
        }
        self.keys.iter().any(|key| {
            if !key.details.revocation_signatures.is_empty() {
                return false;
            }
            let own = key
                .details
                .users
                .iter()
                .flat_map(|user| &user.signatures)
                .chain(&key.details.direct_signatures);
            let own: Vec<&Signature> = own.filter(|own| own.verify_by(&key.primary_key)).collect();
            if made_in_time(signature, &key.primary_key, &own)
                && signature.verify(&key.primary_key, text).is_ok()
            {
                return true;
            }
            key.public_subkeys.iter().any(|subkey| {
                let bindings: Vec<&Signature> = subkey.signatures.iter().collect();
                bindings.iter().any(|binding| binding.key_flags().sign())
                    && subkey.verify_bindings(&key.primary_key).is_ok()
                    && made_in_time(signature, &subkey.key, &bindings)
                    && signature.verify(&subkey.key, text).is_ok()
            })
        })
    }
}

/// Whether a signature names a key as its issuer.
trait IssuedBy {
    fn verify_by(&self, key: &impl VerifyingKey) -> bool;
}

impl IssuedBy for Signature {
    fn verify_by(&self, key: &impl VerifyingKey) -> bool {
        let id = key.legacy_key_id();
        self.issuer_key_id().iter().any(|issuer| **issuer == id)
            || self.issuer_fingerprint().iter().any(|issuer| **issuer == key.fingerprint())
    }
}

/// Whether the key, by what its newest self-signature says, was valid when it signed.
fn made_in_time(signature: &Signature, key: &impl KeyDetails, self_signatures: &[&Signature]) -> bool {
    let Some(signed_at) = signature.created().map(|time| u64::from(time.as_secs())) else { return false };
    let born = u64::from(key.created_at().as_secs());
    let newest = self_signatures.iter().max_by_key(|own| own.created().map(|time| time.as_secs()));
    let Some(newest) = newest else { return false };
    // A duration of 0 means that the key does not expire (RFC 9580 §5.2.3.13).
    let life = newest.key_expiration_time().map_or(0, |life| u64::from(life.as_secs()));
    signed_at >= born && (life == 0 || signed_at < born.saturating_add(life))
}

/// A release file that was verified.
#[derive(Debug, Clone)]
pub struct Release {
    /// The codename: `trixie`, `trixie-security`.
    pub codename: String,
    /// `Date`, as written.
    pub date: String,
    /// Whether indices can be fetched by digest.
    pub by_hash: bool,
    files: HashMap<String, (Digest, u64)>,
}

impl Release {
    /// Verifies `text` and reads it.
    ///
    /// # Errors
    /// If the signature, the suite or the dates are not right.
    pub fn verify(
        text: &str,
        codename: &str,
        keyring: &Keyring,
        now: SystemTime,
    ) -> Result<Self, ReleaseError> {
        let text = keyring.signed_text(text)?;
        let fields = Paragraphs::new(text.as_bytes())
            .next()
            .and_then(Result::ok)
            .ok_or_else(|| ReleaseError::Malformed("it is empty".to_owned()))?;
        let field = |name: &str| fields.get(name).cloned();
        let found = field("codename").ok_or(ReleaseError::Field("Codename"))?;
        if found != codename {
            return Err(ReleaseError::OtherSuite { wanted: codename.to_owned(), found });
        }
        let date = field("date").ok_or(ReleaseError::Field("Date"))?;
        let made = parse_date(&date).ok_or(ReleaseError::Field("Date"))?;
        if made > now + Duration::from_secs(24 * 3600) {
            return Err(ReleaseError::NotYet { suite: found, date });
        }
        let until = field("valid-until").unwrap_or_default();
        let over = |until: &str| {
            parse_date(until).map(|until| until < now).ok_or(ReleaseError::Field("Valid-Until"))
        };
        if !until.is_empty() && over(&until)? {
            return Err(ReleaseError::Expired { suite: found, until });
        }
        let listed = field("sha256").ok_or(ReleaseError::Field("SHA256"))?;
        let files = listed.lines().filter_map(parse_file).collect();
        Ok(Self { codename: found, date, by_hash: field("acquire-by-hash").as_deref() == Some("yes"), files })
    }

    /// Digest and size of a file of the suite, by its path below the suite's folder.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<(Digest, u64)> {
        self.files.get(path).copied()
    }
}

/// `<sha256> <size> <path>`
fn parse_file(line: &str) -> Option<(String, (Digest, u64))> {
    let mut words = line.split_whitespace();
    let digest = Digest::from_hex(words.next()?).ok()?;
    let size = words.next()?.parse().ok()?;
    Some((words.next()?.to_owned(), (digest, size)))
}

/// `Sat, 12 Sep 2026 07:55:41 UTC`, the one form Debian's archive writes.
fn parse_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let rest = text.split_once(',').map_or(text, |(_, rest)| rest);
    let mut words = rest.split_whitespace();
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month =
        MONTHS.iter().position(|month| *month == name).and_then(|month| u64::try_from(month + 1).ok())?;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_utc = matches!(words.next()?, "UTC" | "GMT" | "+0000");
    if !in_utc
        || !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // Days since the epoch; the year starts in March so that the leap day is its last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = (365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1).checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

#[cfg(test)]
mod tests;
