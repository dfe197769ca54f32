//! The desktop's keychain: the Secret Service on Linux, by `keyring-core`. The kernel's key rings are not used: they forget at the next boot.

use keyring_core::api::CredentialStoreApi;
use keyring_core::{Entry, Error as KeyringError};
use zeroize::Zeroizing;

use super::error::{Error, Result};

/// Under which service our entries are filed.
const SERVICE: &str = "vivarium";

/// A keychain that answers.
pub(crate) struct Keychain {
    store: std::sync::Arc<dyn CredentialStoreApi + Send + Sync>,
}

impl Keychain {
    /// Connects; `None` where no keychain can be.
    pub(crate) fn connect() -> Result<Option<Self>> {
        #[cfg(target_os = "linux")]
        {
            if !has_session_bus() {
                return Ok(None);
            }
            match zbus_secret_service_keyring_store::Store::new() {
                Ok(store) => Ok(Some(Self { store })),
                Err(error) => Err(failure(&error)),
            }
        }
        #[cfg(not(target_os = "linux"))]
        Ok(None)
    }

    /// Whether a value can be put in and read back now.
    pub(crate) fn probe(&self) -> Result<()> {
        const PROBE: &str = "probe";
        self.put(PROBE, b"probe")?;
        let back = self.get(PROBE)?;
        self.remove(PROBE)?;
        match back.as_ref().map(|bytes| bytes.as_slice()) {
            Some(b"probe") => Ok(()),
            _ => Err(Error::Keychain { why: "what is put in does not come out again".into() }),
        }
    }

    fn entry(&self, id: &str) -> Result<Entry> {
        let label = std::collections::HashMap::from([("label", "Vivarium secret")]);
        self.store.build(SERVICE, id, Some(&label)).map_err(|error| failure(&error))
    }

    pub(crate) fn put(&self, id: &str, value: &[u8]) -> Result<()> {
        self.entry(id)?.set_secret(value).map_err(|error| failure(&error))
    }

    pub(crate) fn get(&self, id: &str) -> Result<Option<Zeroizing<Vec<u8>>>> {
        match self.entry(id)?.get_secret() {
            Ok(value) => Ok(Some(Zeroizing::new(value))),
            Err(KeyringError::NoEntry) => Ok(None),
            Err(error) => Err(failure(&error)),
        }
    }

    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        match self.entry(id)?.delete_credential() {
            Ok(()) | Err(KeyringError::NoEntry) => Ok(()),
            Err(error) => Err(failure(&error)),
        }
    }
}

impl std::fmt::Debug for Keychain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keychain")
    }
}

/// Asking for a bus that is not there takes time and starts things.
#[cfg(target_os = "linux")]
fn has_session_bus() -> bool {
    let is_set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    is_set("DBUS_SESSION_BUS_ADDRESS").is_some()
        || is_set("XDG_RUNTIME_DIR").is_some_and(|folder| std::path::Path::new(&folder).join("bus").exists())
}

/// The errors that carry bytes of a value are not shown.
fn failure(error: &KeyringError) -> Error {
    let why = match error {
        KeyringError::PlatformFailure(cause) | KeyringError::NoStorageAccess(cause) => {
            cause.to_string().lines().next().unwrap_or_default().to_owned()
        }
        KeyringError::BadEncoding(_) | KeyringError::BadDataFormat(..) => {
            "it has something else under this name".into()
        }
        other => other.to_string(),
    };
    Error::Keychain { why }
}
