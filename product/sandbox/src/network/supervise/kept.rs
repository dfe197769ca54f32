//! What clients keep and renew for a sandbox, as its shim is confined: secrets, tokens of logins, the certificate authority.

use std::time::{Duration, Instant, SystemTime};

use gateway::control::{SecretText, ToGateway};
use gateway::record::{Kind, Record};

use super::super::grants::{self, Handed};
use super::super::{Secrets, authority};
use super::{Network, plain};
use crate::control::Notice;

impl Network {
    /// Other secrets; one sentence says why those of before stay.
    pub(crate) fn set_secrets(&mut self, secrets: Secrets) -> std::result::Result<(), String> {
        let text = secrets.text.unwrap_or_default();
        let text = grants::with_unchanged(text, &secrets.unchanged, self.configuration.secrets.as_ref())?;
        self.guest.variables = secrets.variables;
        let until = secrets.until.and_then(instant);
        let is_whole = secrets.unchanged.is_empty() || secrets.lasting;
        (self.secrets_until, self.secrets_ended) =
            ends((self.secrets_until, self.secrets_ended), until, is_whole);
        self.grants.forget(&secrets.forget);
        let text = self.grants.added_to(text);
        self.configuration.secrets = Some(text.clone());
        self.say(&ToGateway::Secrets { secrets: text });
        Ok(())
    }

    /// New tokens: the gateway has them in force. Who set the secrets meanwhile did not know of them, so they are said again.
    pub(super) fn take_grant(&mut self, text: &SecretText) {
        let Some(grant) = self.grants.put(text) else {
            tracing::error!("The gateway's new tokens cannot be read, or are too many");
            return;
        };
        tracing::info!(secret = plain(grant.name()), "There are new tokens of a login");
        match grants::renewed(self.configuration.secrets.as_ref(), &grant) {
            Some(secrets) => {
                self.configuration.secrets = Some(secrets.clone());
                self.say(&ToGateway::Secrets { secrets });
            }
            // Of a secret that was removed.
            None => {
                let secrets = self.configuration.secrets.clone().unwrap_or_default();
                self.grants.added_to(secrets);
            }
        }
    }

    /// The next tokens to be kept, for one of these clients.
    pub(crate) fn hand_grant(&mut self, clients: &[u64]) -> Option<Handed> {
        self.grants.hand(clients)
    }

    /// Whether a client has kept what it was handed.
    pub(crate) fn grant_answered(&mut self, client: u64, number: u64, kept: bool) {
        self.grants.answered(client, number, kept);
    }

    /// What a session decided about the user's SSH agent.
    pub(crate) fn note_ssh_agent(&mut self, mut records: Vec<Record>) -> Vec<Notice> {
        records.retain(|record| record.what.kind == Kind::SshAgent);
        self.write_down(records)
    }

    /// A client is gone.
    pub(crate) fn client_left(&mut self, client: u64) {
        self.grants.left(client);
    }

    /// Another certificate authority; one sentence says why it cannot be used.
    pub(crate) fn set_authority(&mut self, ca: SecretText) -> std::result::Result<(), String> {
        let Some(old) = &self.configuration.ca else { return Err("it has none".into()) };
        if authority::replaces(&ca, old)? {
            self.configuration.ca = Some(ca.clone());
            self.note_authority();
            self.say(&ToGateway::Ca { ca });
        }
        Ok(())
    }

    pub(super) fn note_authority(&mut self) {
        let good_for =
            self.configuration.ca.as_ref().and_then(|ca| authority::good_for(ca, SystemTime::now()));
        self.authority = good_for.and_then(|left| Instant::now().checked_add(left));
    }
}

/// When values end, and whether they have, after others came that end at `until`; `is_whole` says that nothing of before goes on that ends.
fn ends(before: (Option<Instant>, bool), until: Option<Instant>, is_whole: bool) -> (Option<Instant>, bool) {
    match (is_whole, until) {
        (true, _) => (until, false),
        // Values of before may end earlier.
        (false, Some(until)) => (Some(before.0.map_or(until, |at| at.min(until))), false),
        (false, None) => before,
    }
}

/// A time of day for the loop.
pub(super) fn instant(seconds: u64) -> Option<Instant> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    Instant::now().checked_add(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_once_the_last_secret_is_gone_that_was_asked_for_again() {
        let soon = Instant::now();
        let later = soon + Duration::from_secs(60);
        // Another one was set or removed: the one that ends goes on.
        assert_eq!(ends((Some(soon), false), None, false), (Some(soon), false));
        assert_eq!(ends((None, true), None, false), (None, true));
        assert_eq!(ends((Some(soon), false), Some(later), false), (Some(soon), false));
        assert_eq!(ends((None, true), Some(later), false), (Some(later), false));
        // No other one ends.
        assert_eq!(ends((Some(soon), false), None, true), (None, false));
        assert_eq!(ends((None, true), None, true), (None, false));
        assert_eq!(ends((Some(soon), false), Some(later), true), (Some(later), false));
    }
}
