//! What a client hands to the shim that it starts: what only the client has, and what must stand in no argument list and no environment.

use std::io::{self, Read, Write};

use gateway::control::SecretText;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ClientProxies;

/// Bytes of the longest one. A pipe takes 64 KiB at once; the shim reads before it does anything else.
const LONGEST: u64 = 1 << 20;

/// What a guest is told of the secrets, and the gateway itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Secrets {
    /// The whole set, as crate `vault` writes it; `None` without any.
    #[serde(default)]
    pub text: Option<SecretText>,
    /// The variables of sessions, with placeholders as values.
    #[serde(default)]
    pub variables: Vec<(String, String)>,
    /// Secrets that were set anew: tokens of their logins that nobody has kept yet are forgotten.
    #[serde(default)]
    pub forget: Vec<String>,
    /// When values that programs gave are to be asked for again, in seconds since 1970; `None` if never, or if all of them are `unchanged`.
    #[serde(default)]
    pub until: Option<u64>,
    /// The names of secrets that a running sandbox has as they are: they stand in `text` without a value.
    #[serde(default)]
    pub unchanged: Vec<String>,
    /// No value has to be asked for again, of those that are `unchanged` either.
    #[serde(default)]
    pub lasting: bool,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Handover {
    /// The proxies of the client; their addresses may hold passwords.
    #[serde(default)]
    pub proxies: ClientProxies,
    /// The sandbox's secrets.
    #[serde(default)]
    pub secrets: Secrets,
}

impl Handover {
    /// Writes it to the shim's standard input.
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let text = Zeroizing::new(serde_json::to_vec(self)?);
        to.write_all(&text)
    }

    /// What the standard input holds to its end. Nothing at all is an empty one.
    pub fn read(from: impl Read) -> io::Result<Self> {
        let mut text = Zeroizing::new(Vec::new());
        from.take(LONGEST).read_to_end(&mut text)?;
        if text.is_empty() { Ok(Self::default()) } else { Ok(serde_json::from_slice(&text)?) }
    }
}

#[cfg(test)]
mod tests {
    use gateway::control::Proxies;

    use super::*;

    #[test]
    fn what_is_handed_over_arrives_and_is_not_shown() {
        let secrets = Secrets {
            text: Some(SecretText::new(Zeroizing::new("hunter2".into()))),
            variables: vec![("TOKEN".into(), "placeholder".into())],
            until: Some(7),
            forget: Vec::new(),
            unchanged: Vec::new(),
            lasting: true,
        };
        let proxies = Proxies { all: Some("socks5://u:hunter2@p:1".into()), ..Proxies::default() };
        let proxies = ClientProxies { proxies, ..ClientProxies::default() };
        let given = Handover { proxies, secrets };
        let mut bytes = Vec::new();
        given.write(&mut bytes).unwrap();
        let taken = Handover::read(&*bytes).unwrap();
        assert_eq!(taken.secrets.text.as_ref().unwrap().expose(), "hunter2");
        assert_eq!((&taken.proxies, &taken.secrets.variables), (&given.proxies, &given.secrets.variables));
        assert!(!format!("{taken:?}").contains("hunter2"));
        assert!(Handover::read(io::empty()).unwrap().secrets.text.is_none());
        assert!(Handover::read(&b"{"[..]).is_err());
    }
}
