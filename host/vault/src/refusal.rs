//! Why a request with a credential, or one that should not have it, is not passed on.

use crate::services;

/// The reason: one sentence, without a value in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A placeholder went to a host that its secret is not bound to.
    #[error("the placeholder of the secret \"{secret}\" was sent to {host}, which that secret is not for")]
    Exfiltration {
        /// The secret's name.
        secret: String,
        /// Where it was sent.
        host: String,
    },
    /// A placeholder was sent without TLS.
    #[error("the placeholder of the secret \"{secret}\" was sent to {host} without TLS")]
    Plaintext {
        /// The secret's name.
        secret: String,
        /// Where it was sent.
        host: String,
    },
    /// The host is right, but the secret is limited to other requests.
    #[error("the secret \"{secret}\" is not for this method and path")]
    NotForRequest {
        /// The secret's name.
        secret: String,
    },
    /// The place where the placeholder stands is there more than once.
    #[error("{place} is there more than once, with the placeholder of the secret \"{secret}\" in it")]
    Repeated {
        /// The secret's name.
        secret: String,
        /// The place, for people.
        place: String,
    },
    /// The guest sends a credential of its own to a host whose credential is kept here.
    #[error("{place} has a credential that is not the secret \"{secret}\", which is kept for this host")]
    Foreign {
        /// The secret's name.
        secret: String,
        /// The place, for people.
        place: String,
    },
    /// The request cannot be understood where a credential stands.
    #[error("{what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
    /// Understood, but nothing that can be done here.
    #[error("{what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// Something must be held as a whole and is too long for that.
    #[error("{what} is longer than {limit} bytes")]
    TooLarge {
        /// What is too long.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// Somebody signs in where somebody is signed in.
    #[error(
        "somebody is signed in already, whose tokens are the secret \"{secret}\": another login does not replace them"
    )]
    SignedIn {
        /// The secret's name.
        secret: String,
    },
    /// The answer would be a fresh credential, which would reach the guest as it is.
    #[error("the secret \"{secret}\" is not used for what is answered with fresh credentials: {what}")]
    Mints {
        /// The secret's name.
        secret: String,
        /// What was asked for.
        what: String,
    },
    /// What is to be signed for is not what the request goes to.
    #[error("the AWS signature of the secret \"{secret}\" is for {scope}, which {host} does not serve")]
    Scope {
        /// The secret's name.
        secret: String,
        /// Service and region.
        scope: String,
        /// Where the request goes.
        host: String,
    },
    /// The secret's value could not be had.
    #[error("the secret \"{secret}\" cannot be had: {why}")]
    Unavailable {
        /// The secret's name.
        secret: String,
        /// The reason.
        why: String,
    },
}

impl Refusal {
    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed { .. } => 400,
            Self::TooLarge { .. } => 413,
            Self::Unavailable { .. } => 502,
            Self::Unsupported { .. } => 501,
            _ => 403,
        }
    }

    /// The secret that it is about.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Self::Exfiltration { secret, .. }
            | Self::Plaintext { secret, .. }
            | Self::NotForRequest { secret }
            | Self::Repeated { secret, .. }
            | Self::Foreign { secret, .. }
            | Self::SignedIn { secret }
            | Self::Mints { secret, .. }
            | Self::Scope { secret, .. }
            | Self::Unavailable { secret, .. } => Some(secret),
            Self::Malformed { .. } | Self::Unsupported { .. } | Self::TooLarge { .. } => None,
        }
    }

    /// Whether somebody in the guest tried to get a credential out.
    pub fn is_exfiltration(&self) -> bool {
        matches!(self, Self::Exfiltration { .. } | Self::Plaintext { .. })
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exfiltration { .. } => "viv secret ls shows which hosts each secret is for".into(),
            Self::Plaintext { .. } => "use https".into(),
            Self::NotForRequest { .. } => "viv secret ls --json shows the methods and paths".into(),
            Self::Foreign { secret, .. } => {
                // Names of services are no other secrets' names.
                let verb = if services::find(secret).is_some() { "set" } else { "set-custom" };
                format!(
                    "viv secret {verb} {secret} again, as it was set and with --allow-other, lets other credentials pass to these hosts"
                )
            }
            Self::SignedIn { secret } => {
                format!("viv secret set {secret} --oauth forgets the tokens; then sign in again")
            }
            Self::Mints { .. } => {
                "get them on the host and set them there: viv secret set, or set-custom --command".into()
            }
            Self::Unavailable { .. } => "viv secret ls shows where it comes from".into(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lets_other_credentials_pass_is_the_command_that_the_secret_was_set_with() {
        let hint = |secret: &str| {
            Refusal::Foreign { secret: secret.into(), place: "the header x".into() }.hint().unwrap()
        };
        assert!(hint("github").starts_with("viv secret set github "), "{}", hint("github"));
        assert!(hint("jira").starts_with("viv secret set-custom jira "), "{}", hint("jira"));
        assert!(hint("jira").contains("--allow-other"));
    }
}
