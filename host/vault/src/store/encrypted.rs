//! Values in files in the age format (age-encryption.org/v1): each is encrypted to one X25519 key, so that setting and removing needs no unlocking.
//!
//! ```text
//! secrets/recipient       the public key
//! secrets/identity.age    the private key, itself encrypted with a passphrase; or
//! config/vault.key        the private key in a file that only its owner reads
//! secrets/values/ID.age   one value
//! ```

use std::io::{Read, Write};
use std::path::PathBuf;

use age::secrecy::{ExposeSecret, SecretString};
use age::{DecryptError, Decryptor, Encryptor, scrypt, x25519};
use zeroize::Zeroizing;

use super::Folders;
use super::error::{Error, Result};
use super::files;
use crate::secret::Secret;

/// The cost of trying a passphrase: 2^17 rounds, 128 MiB.
const WORK_FACTOR: u8 = 17;
/// The highest cost that is paid for a file that is there.
const MAX_WORK_FACTOR: u8 = 20;
/// The longest value in a file, in bytes.
const LONGEST: u64 = 256 << 10;

/// What protects the private key.
#[derive(Debug)]
pub enum Protection {
    /// A passphrase.
    Passphrase(Secret),
    /// That only its owner can read the file with it.
    KeyFile,
}

/// What protects the private key that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A passphrase.
    Passphrase,
    /// A file's mode.
    KeyFile,
}

/// The encrypted files.
pub(crate) struct Files {
    data: PathBuf,
    key_file: PathBuf,
    identity: Option<x25519::Identity>,
}

impl Files {
    pub(crate) fn new(folders: &Folders) -> Self {
        Self { data: folders.data.clone(), key_file: folders.config.join("vault.key"), identity: None }
    }

    fn recipient_path(&self) -> PathBuf {
        self.data.join("recipient")
    }

    fn identity_path(&self) -> PathBuf {
        self.data.join("identity.age")
    }

    fn value_path(&self, id: &str) -> PathBuf {
        self.data.join("values").join(format!("{id}.age"))
    }

    pub(crate) fn key_file(&self) -> &PathBuf {
        &self.key_file
    }

    /// What protects the key, if there is one.
    pub(crate) fn kind(&self) -> Option<Kind> {
        if self.identity_path().exists() {
            Some(Kind::Passphrase)
        } else if self.recipient_path().exists() {
            Some(Kind::KeyFile)
        } else {
            None
        }
    }

    /// Makes a key.
    pub(crate) fn create(&mut self, protection: &Protection) -> Result<()> {
        let identity = x25519::Identity::generate();
        let text = identity.to_string();
        let text = Zeroizing::new(format!("{}\n", text.expose_secret()));
        match protection {
            Protection::KeyFile => files::write(&self.key_file, text.as_bytes())?,
            Protection::Passphrase(passphrase) => {
                let mut recipient = scrypt::Recipient::new(phrase(passphrase)?);
                recipient.set_work_factor(WORK_FACTOR);
                files::write(&self.identity_path(), &encrypted(&recipient, text.as_bytes())?)?;
            }
        }
        // Last, as it is what says that there is a key.
        files::write(&self.recipient_path(), format!("{}\n", identity.to_public()).as_bytes())?;
        self.identity = Some(identity);
        Ok(())
    }

    /// Whether [`Files::unlock`] needs a passphrase.
    pub(crate) fn is_locked(&self) -> bool {
        self.identity.is_none() && self.kind() == Some(Kind::Passphrase)
    }

    /// Reads the private key; `ask` is called if it needs a passphrase.
    pub(crate) fn unlock(&mut self, ask: &mut dyn FnMut(&str) -> Result<Secret>) -> Result<()> {
        if self.identity.is_some() {
            return Ok(());
        }
        let (path, text) = if self.kind() == Some(Kind::Passphrase) {
            let path = self.identity_path();
            let bytes = files::read(&path)?.ok_or_else(|| Error::damaged(&path, "it is gone"))?;
            let given = ask("Passphrase of the secrets: ")?;
            let mut identity = scrypt::Identity::new(phrase(&given).map_err(|_| Error::WrongPassphrase)?);
            identity.set_max_work_factor(MAX_WORK_FACTOR);
            let text = decrypted(&bytes, &identity).map_err(|error| match error {
                DecryptError::DecryptionFailed
                | DecryptError::KeyDecryptionFailed
                | DecryptError::NoMatchingKeys => Error::WrongPassphrase,
                other => Error::damaged(&path, in_words(&other)),
            })?;
            (path, text)
        } else {
            let path = self.key_file.clone();
            let text = files::read(&path)?
                .ok_or_else(|| Error::damaged(&path, "it is gone, and with it the values"))?;
            files::refuse_exposed(&path)?;
            (path, text)
        };
        let text = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        self.identity = Some(text.ok_or_else(|| Error::damaged(&path, "there is no age identity in it"))?);
        Ok(())
    }

    pub(crate) fn put(&self, id: &str, value: &[u8]) -> Result<()> {
        let path = self.recipient_path();
        let text = files::read(&path)?.ok_or_else(|| Error::damaged(&path, "it is gone"))?;
        let recipient: Option<x25519::Recipient> =
            std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        let recipient = recipient.ok_or_else(|| Error::damaged(&path, "there is no age recipient in it"))?;
        files::write(&self.value_path(id), &encrypted(&recipient, value)?)
    }

    /// Needs the private key.
    pub(crate) fn get(&self, id: &str) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let path = self.value_path(id);
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        let identity = self.identity.as_ref().ok_or(Error::Locked)?;
        let value = decrypted(&bytes, identity).map_err(|error| Error::damaged(&path, in_words(&error)))?;
        Ok(Some(value))
    }

    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        files::delete(&self.value_path(id))
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("data", &self.data).finish_non_exhaustive()
    }
}

fn phrase(passphrase: &Secret) -> Result<SecretString> {
    let text = passphrase.expose_text().filter(|text| !text.is_empty());
    let text = text.ok_or_else(|| Error::BadValue("the passphrase is empty or no text".into()))?;
    Ok(SecretString::from(text.to_owned()))
}

fn encrypted(recipient: &dyn age::Recipient, bytes: &[u8]) -> Result<Vec<u8>> {
    let fail = |why: String| Error::BadValue(format!("a value cannot be encrypted: {why}"));
    let encryptor =
        Encryptor::with_recipients(std::iter::once(recipient)).map_err(|error| fail(error.to_string()))?;
    let mut out = Vec::new();
    let mut writer = encryptor.wrap_output(&mut out).map_err(|error| fail(error.to_string()))?;
    writer
        .write_all(bytes)
        .and_then(|()| writer.finish().map(drop))
        .map_err(|error| fail(error.to_string()))?;
    Ok(out)
}

fn decrypted(bytes: &[u8], identity: &dyn age::Identity) -> Result<Zeroizing<Vec<u8>>, DecryptError> {
    let reader = Decryptor::new(bytes)?.decrypt(std::iter::once(identity))?;
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len()));
    // A file that was cut short fails here, before anything of it is used.
    reader.take(LONGEST).read_to_end(&mut out).map_err(DecryptError::Io)?;
    Ok(out)
}

fn in_words(error: &DecryptError) -> String {
    match error {
        DecryptError::InvalidHeader | DecryptError::UnknownFormat => "it is no age file".into(),
        DecryptError::ExcessiveWork { .. } => "it wants more work than viv ever asked for".into(),
        DecryptError::NoMatchingKeys | DecryptError::KeyDecryptionFailed => {
            "it is encrypted for another key".into()
        }
        _ => "it was changed or cut short".into(),
    }
}
