//! What a session does for its sandbox in passing, as the shim is confined and cannot: it keeps the tokens of logins where this user's
//! secrets are, asks programs for values again, and issues the certificate authority again before it ends.

use sandbox::client::Held;
use sandbox::control::Unkept;
use sandbox::folder::Sandbox;
use sandbox::network::{SecretText, authority};
use sandbox::places::Places;
use vault::oauth::Grant;
use vault::store::{Folders, Vault};

use crate::commands::secret;

/// Keeps what the shim handed over and says so to it. What the user should know of that comes back.
pub(crate) fn grant(held: &Held, sandbox: &Sandbox, unkept: &Unkept) -> Option<String> {
    let kept = keep(&sandbox.spec.id, &unkept.grant);
    // An error: the sandbox is gone, and the tokens are kept or were lost with it.
    let _ = held.grant_kept(unkept.number, kept.is_ok());
    kept.err()
}

/// Keeps those of the sandbox with this id; one sentence says why not.
pub(crate) fn keep(sandbox: &str, text: &SecretText) -> Result<(), String> {
    let grant = Grant::from_wire(text.expose())
        .map_err(|_| "tokens of a login cannot be kept: they cannot be read".to_owned())?;
    let kept = Folders::from_env()
        .and_then(|folders| Vault::open(&folders))
        .and_then(|mut vault| vault.keep_grant(sandbox, &grant));
    kept.map_err(|error| {
        format!("the tokens of {} cannot be kept, and are lost when the sandbox stops: {error}", grant.name())
    })
}

/// Issues the certificate authority again. What the user should know of that comes back.
pub(crate) fn authority(held: &Held, sandbox: &Sandbox) -> Option<String> {
    let issued = Places::from_env().and_then(|places| authority::issue(&places, sandbox));
    match issued.and_then(|authority| held.set_authority(authority)) {
        Ok(()) => None,
        Err(error) => Some(format!("the sandbox's certificates end before long: {error}")),
    }
}

/// Asks for the values of secrets again that programs gave. What the user should know of that comes back.
pub(crate) fn secrets(sandbox: &Sandbox) -> Option<String> {
    let why = match secret::ask_again(sandbox) {
        Ok(problems) if problems.is_empty() => return None,
        Ok(problems) => problems.join("; "),
        Err(failure) => failure.message().to_owned(),
    };
    Some(format!("values of secrets are not asked for again: {why}"))
}
