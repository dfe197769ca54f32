//! The certificate authority of a sandbox: issued for its start, and again by a client before it ends. The shim of a running
//! sandbox is confined and cannot read the host's root.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gateway::control::SecretText;
use intercept::{IntermediateCa, RootCa};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::folder::Sandbox;
use crate::places::Places;

/// With less than this left it is issued again.
const RENEW: Duration = Duration::from_secs(intercept::INTERMEDIATE_DAYS * 86_400 / 2);

/// The host's root, made if there is none or it soon ends.
pub(crate) fn root(places: &Places, now: SystemTime) -> Result<RootCa> {
    let folder = places.certificates();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|source| Error::file("cannot make the folder", &folder, source))?;
    RootCa::load_or_make(&folder, now).map_err(|error| untrusted(places, &error))
}

/// A new authority for a sandbox.
pub fn issue(places: &Places, sandbox: &Sandbox) -> Result<SecretText> {
    let now = SystemTime::now();
    issue_by(&root(places, now)?, places, sandbox, now)
}

pub(crate) fn issue_by(
    root: &RootCa,
    places: &Places,
    sandbox: &Sandbox,
    now: SystemTime,
) -> Result<SecretText> {
    let authority = root.issue(&sandbox.spec.name, now).map_err(|error| untrusted(places, &error))?;
    written(&authority)
}

fn written(authority: &IntermediateCa) -> Result<SecretText> {
    let text = serde_json::to_string(authority)
        .map_err(|error| Error::host("cannot write a certificate", std::io::Error::from(error)))?;
    Ok(SecretText::new(Zeroizing::new(text)))
}

fn untrusted(places: &Places, error: &intercept::CaError) -> Error {
    Error::NotStarted {
        why: format!("the host's own root certificate cannot be used: {}", crate::engine::sentence(error)),
        hint: Some(format!("it lies in {}", places.certificates().display())),
    }
}

/// How long one is good for yet before it should be issued again; `None` when it cannot be read.
pub(crate) fn good_for(text: &SecretText, now: SystemTime) -> Option<Duration> {
    let authority: IntermediateCa = serde_json::from_str(text.expose()).ok()?;
    let ends = UNIX_EPOCH.checked_add(Duration::from_secs(authority.not_after))?;
    Some(ends.duration_since(now).unwrap_or_default().saturating_sub(RENEW))
}

/// Whether a client's authority takes the place of the one in force; one sentence says why not.
pub(crate) fn replaces(new: &SecretText, old: &SecretText) -> std::result::Result<bool, String> {
    let read = |text: &SecretText| {
        // The error would show a part of the text.
        serde_json::from_str::<IntermediateCa>(text.expose()).map_err(|_| "it cannot be read".to_owned())
    };
    let (new, old) = (read(new)?, read(old)?);
    if new.root != old.root {
        return Err("the host has another root certificate by now, which this guest does not know".into());
    }
    Ok(new.not_after > old.not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ends_soon_is_replaced_by_a_later_one_of_the_same_root() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let now = SystemTime::now();
        let root = RootCa::load_or_make(folder.path(), now).unwrap();
        let day = Duration::from_secs(86_400);
        let at = |root: &RootCa, time| written(&root.issue("box", time).unwrap()).unwrap();
        let old = at(&root, now);
        assert!(good_for(&old, now).unwrap() > 14 * day);
        assert_eq!(good_for(&old, now + 16 * day), Some(Duration::ZERO));
        let new = at(&root, now + 16 * day);
        assert_eq!(replaces(&new, &old), Ok(true));
        assert_eq!(replaces(&old, &new), Ok(false));
        let foreign = at(&RootCa::load_or_make(other.path(), now).unwrap(), now + 16 * day);
        assert!(replaces(&foreign, &old).unwrap_err().contains("another root"));
        let nonsense = SecretText::new("{".to_owned().into());
        assert!(replaces(&nonsense, &old).is_err() && good_for(&nonsense, now).is_none());
    }
}
