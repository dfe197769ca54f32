//! The host's root, and the certificate authority of one sandbox that it signs.
//!
//! The root is made once a host and lives in one file, `root.json` (mode 0600), that only the shim reads: certificate and
//! key cannot come apart, and making it is one link in the folder. A sandbox gets an authority of its own, which
//! ends after [`INTERMEDIATE_DAYS`]; its key is made in memory, goes to the gateway over the control socket and is
//! written nowhere.
//!
//! Neither is name-constrained: RFC 5280 §4.2.1.10 constraints would have to list every name that a later rule may allow.
//! What limits them is that the root is trusted inside the guests only, never by the host, and that `pathlen`
//! lets an intermediate sign leaves alone.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, date_time_ymd,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::sys;

/// The root's file in the folder that it is given.
pub const ROOT_FILE: &str = "root.json";
/// How long a root is good for, in days.
pub const ROOT_DAYS: u64 = 3650;
/// A root with less than this many days left is made anew: running sandboxes keep the old one, which they have.
pub const ROOT_RENEW_DAYS: u64 = 365;
/// How long a sandbox's authority is good for, in days.
pub const INTERMEDIATE_DAYS: u64 = 30;
/// Certificates begin this long before they are made: a guest's clock may be behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(86_400);
const DAY: u64 = 86_400;
/// No root file is as long as this.
const MAX_FILE: u64 = 64 * 1024;

/// Why there is no root or no intermediate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file cannot be read or made.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there and is not a root: nothing is overwritten.
    #[error("{path} is not a root certificate of ours: {reason}; move it away to get a new one")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Others than the owner may read the key.
    #[error("{path} may be read by others (mode {mode:o}): chmod 600 it")]
    Exposed {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// `root.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootFile {
    format: String,
    version: u32,
    /// The certificate's common name: its subject is this and the organisation.
    name: String,
    /// Seconds since 1970.
    not_after: u64,
    certificate_pem: String,
    key_pem: Zeroizing<String>,
}

const FORMAT: &str = "vivarium-root-ca";
const ORGANISATION: &str = "Vivarium";

/// The host's root. The shim's alone.
pub struct RootCa {
    name: String,
    not_after: u64,
    certificate_pem: String,
    certificate: Vec<u8>,
    key: KeyPair,
}

impl std::fmt::Debug for RootCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootCa")
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl RootCa {
    /// The root in `folder`, made there if there is none or it soon ends. The folder is made, 0700, if it is missing.
    /// Two that make it at once get the same one.
    ///
    /// # Errors
    /// When the file cannot be read or written, is not a root, or may be read by others.
    pub fn load_or_make(folder: &Path, now: SystemTime) -> Result<Self, CaError> {
        sys::make_private_folder(folder).map_err(|e| file_error(folder, e))?;
        let path = folder.join(ROOT_FILE);
        let old = Self::load(&path)?;
        let fresh_until = seconds(now).saturating_add(ROOT_RENEW_DAYS * DAY);
        let renew = match old {
            Some(root) if root.not_after > fresh_until => return Ok(root),
            Some(_) => true,
            None => false,
        };
        let text = Self::make(now)?;
        place(folder, &path, &text, renew).map_err(|e| file_error(&path, e))?;
        // What lies there now counts: another process may have been first.
        Self::load(&path)?.ok_or_else(|| file_error(&path, io::ErrorKind::NotFound.into()))
    }

    /// The root in a file; `None` if there is no file.
    fn load(path: &Path) -> Result<Option<Self>, CaError> {
        let file = match sys::open_itself(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file_error(path, e)),
        };
        let metadata = file.metadata().map_err(|e| file_error(path, e))?;
        let damaged = |reason: String| CaError::Damaged { path: path.display().to_string(), reason };
        if !metadata.is_file() {
            return Err(damaged("it is not a file".into()));
        }
        if let Some(mode) = sys::mode_for_others(&metadata) {
            return Err(CaError::Exposed { path: path.display().to_string(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE).read_to_string(&mut text).map_err(|e| file_error(path, e))?;
        Self::parse(&text).map(Some).map_err(damaged)
    }

    /// Reads what [`Self::make`] wrote.
    fn parse(text: &str) -> Result<Self, String> {
        let file: RootFile = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if file.format != FORMAT || file.version != 1 {
            return Err(format!("format {} {}", file.format, file.version));
        }
        let key = KeyPair::from_pem(&file.key_pem).map_err(|e| format!("key: {e}"))?;
        let certificate = pem_body(&file.certificate_pem).ok_or("the certificate is not PEM")?;
        let public = key.subject_public_key_info();
        if public.is_empty() || !certificate.windows(public.len()).any(|piece| piece == public.as_slice()) {
            return Err("key and certificate do not belong together".into());
        }
        Ok(Self {
            name: file.name,
            not_after: file.not_after,
            certificate_pem: file.certificate_pem,
            certificate,
            key,
        })
    }

    /// A new root, as the file's text.
    fn make(now: SystemTime) -> Result<Zeroizing<String>, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // The name differs from host to host, so that two roots in one trust store are told apart.
        let tail: String =
            key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
        let name = format!("Vivarium root {tail}");
        let not_after = seconds(now).saturating_add(ROOT_DAYS * DAY);
        let certificate = root_params(&name, now, not_after).self_signed(&key)?;
        let file = RootFile {
            format: FORMAT.into(),
            version: 1,
            name,
            not_after,
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        };
        Ok(Zeroizing::new(
            serde_json::to_string_pretty(&file)
                .map_err(|e| CaError::Damaged { path: ROOT_FILE.into(), reason: e.to_string() })?,
        ))
    }

    /// The certificate as PEM, for the guest's trust stores.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate as DER.
    #[must_use]
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// When the root ends, in seconds since 1970.
    #[must_use]
    pub const fn not_after(&self) -> u64 {
        self.not_after
    }

    /// A certificate authority for one sandbox, good for [`INTERMEDIATE_DAYS`] and never longer than the root.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn issue(&self, sandbox: &str, now: SystemTime) -> Result<IntermediateCa, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = seconds(now).saturating_add(INTERMEDIATE_DAYS * DAY).min(self.not_after);
        let name = format!("Vivarium sandbox {sandbox}");
        let issuer = Issuer::new(root_params(&self.name, now, self.not_after), &self.key);
        let certificate = intermediate_params(&name, now, not_after).signed_by(&key, &issuer)?;
        Ok(IntermediateCa {
            name,
            certificate: certificate.der().to_vec(),
            root: self.certificate.clone(),
            key: Zeroizing::new(key.serialize_der()),
            not_after,
        })
    }
}

/// A sandbox's certificate authority: what the shim hands to the gateway. Its `Debug` leaves the key out, and the key is
/// zeroised when it is dropped.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntermediateCa {
    /// The common name of the certificate's subject.
    pub name: String,
    /// The certificate, DER.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub certificate: Vec<u8>,
    /// The root that signed it, DER.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub root: Vec<u8>,
    /// The private key, PKCS #8.
    #[serde(serialize_with = "to_base64_secret", deserialize_with = "from_base64_secret")]
    pub key: Zeroizing<Vec<u8>>,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: u64,
}

impl std::fmt::Debug for IntermediateCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IntermediateCa")
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl IntermediateCa {
    /// The same subject again, as the issuer of leaves.
    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
        let key = KeyPair::try_from(self.key.as_slice())?;
        Ok(Issuer::new(intermediate_params(&self.name, UNIX_EPOCH, self.not_after), key))
    }
}

fn root_params(name: &str, now: SystemTime, not_after: u64) -> CertificateParams {
    authority_params(name, now, not_after, 1)
}

fn intermediate_params(name: &str, now: SystemTime, not_after: u64) -> CertificateParams {
    let mut params = authority_params(name, now, not_after, 0);
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn authority_params(name: &str, now: SystemTime, not_after: u64, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANISATION);
    params.distinguished_name.push(DnType::CommonName, name);
    set_validity(&mut params, now, not_after);
    params
}

/// From a day before `now` to `not_after`, seconds since 1970.
pub(crate) fn set_validity(params: &mut CertificateParams, now: SystemTime, not_after: u64) {
    let epoch = date_time_ymd(1970, 1, 1);
    // Year 9999 ends what X.509 can say (RFC 5280 §4.1.2.5).
    let last = 253_402_300_799;
    let begin = seconds(now).saturating_sub(BACKDATE.as_secs()).min(last);
    params.not_before = epoch + Duration::from_secs(begin);
    params.not_after = epoch + Duration::from_secs(not_after.min(last));
}

/// Seconds since 1970; 0 for a clock before that.
pub(crate) fn seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A leaf's DER, signed by `issuer`.
pub(crate) fn sign_leaf(
    params: &CertificateParams,
    key: &KeyPair,
    issuer: &Issuer<'static, KeyPair>,
) -> Result<Vec<u8>, rcgen::Error> {
    params.signed_by(key, issuer).map(|certificate: Certificate| certificate.der().to_vec())
}

/// Writes `text` beside `path` and puts it there: over what is there if it is a renewal, else only if nothing is.
fn place(folder: &Path, path: &Path, text: &str, renew: bool) -> io::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let beside = folder.join(format!(".{ROOT_FILE}.{}.{number}", std::process::id()));
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = sys::create_private(&beside)?;
    let mut put = || -> io::Result<()> {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if renew {
            return fs::rename(&beside, path);
        }
        match fs::hard_link(&beside, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let result = put();
    // Gone already after a rename.
    let _ = fs::remove_file(&beside);
    result?;
    sys::sync_folder(folder)
}

fn file_error(path: &Path, source: io::Error) -> CaError {
    CaError::File { path: path.display().to_string(), source }
}

/// The bytes of the first PEM block.
fn pem_body(text: &str) -> Option<Vec<u8>> {
    let body = text.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END CERTIFICATE-----")?.0;
    BASE64.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

fn to_base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    BASE64.decode(text).map_err(serde::de::Error::custom)
}

fn to_base64_secret<S: Serializer>(bytes: &Zeroizing<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&Zeroizing::new(BASE64.encode(bytes.as_slice())))
}

fn from_base64_secret<'de, D: Deserializer<'de>>(from: D) -> Result<Zeroizing<Vec<u8>>, D::Error> {
    let text = Zeroizing::new(String::deserialize(from)?);
    // The decoder's words would hold a piece of what it was given.
    BASE64
        .decode(text.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| serde::de::Error::custom("the key is not base64"))
}
