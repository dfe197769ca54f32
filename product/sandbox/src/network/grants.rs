//! Tokens that logins in the guest brought, or that were renewed, until somebody has kept them: the shim is confined and reaches no
//! keychain, so it hands each to one client, and to the next when that one goes without having kept it.

use std::collections::{BTreeMap, BTreeSet};

use gateway::control::SecretText;
use vault::Credentials;
use vault::oauth::Grant;

/// Logins of one sandbox.
const MOST: usize = 64;

/// Those that nobody has kept yet.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// By the names of their secrets: a newer one replaces an older one.
    waiting: BTreeMap<String, Waiting>,
    last: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    text: SecretText,
    /// The client that has it.
    with: Option<u64>,
    /// Clients that could not keep it.
    declined: BTreeSet<u64>,
}

/// One that is handed over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Handed {
    /// To this client.
    pub(crate) client: u64,
    /// For its answer.
    pub(crate) number: u64,
    /// With the tokens.
    pub(crate) text: SecretText,
}

impl Grants {
    /// Takes one over and gives it; `None` when it is none, or one too many.
    pub(crate) fn put(&mut self, text: &SecretText) -> Option<Grant> {
        let grant = Grant::from_wire(text.expose()).ok()?;
        if self.waiting.len() >= MOST && !self.waiting.contains_key(grant.name()) {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let waiting =
            Waiting { number: self.last, text: text.clone(), with: None, declined: BTreeSet::new() };
        self.waiting.insert(grant.name().to_owned(), waiting);
        Some(grant)
    }

    /// The next one that nobody has, for the first of these clients that may be able to keep it: it has it from now on.
    pub(crate) fn hand(&mut self, clients: &[u64]) -> Option<Handed> {
        self.waiting.values_mut().find_map(|waiting| {
            if waiting.with.is_some() {
                return None;
            }
            let client = *clients.iter().find(|client| !waiting.declined.contains(client))?;
            waiting.with = Some(client);
            Some(Handed { client, number: waiting.number, text: waiting.text.clone() })
        })
    }

    /// A client's answer. One for an older grant of a secret that has a newer one means nothing.
    pub(crate) fn answered(&mut self, client: u64, number: u64, kept: bool) {
        let is_meant = |waiting: &Waiting| waiting.number == number && waiting.with == Some(client);
        if kept {
            self.waiting.retain(|_, waiting| !is_meant(waiting));
            return;
        }
        for waiting in self.waiting.values_mut().filter(|waiting| is_meant(waiting)) {
            waiting.with = None;
            waiting.declined.insert(client);
        }
    }

    /// A client is gone: what it has not kept is another one's.
    pub(crate) fn left(&mut self, client: u64) {
        for waiting in self.waiting.values_mut() {
            waiting.declined.remove(&client);
            if waiting.with == Some(client) {
                waiting.with = None;
            }
        }
    }

    /// Drops those of these secrets: who set them anew knows that there may be some, and wants none.
    pub(crate) fn forget(&mut self, names: &[String]) {
        self.waiting.retain(|name, _| !names.contains(name));
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A set of secrets with the tokens that wait: who wrote it could not know of them. Those of secrets that are gone are forgotten.
    pub(crate) fn added_to(&mut self, secrets: SecretText) -> SecretText {
        if self.waiting.is_empty() {
            return secrets;
        }
        let Ok(mut set) = Credentials::from_wire(secrets.expose()) else {
            // None at all, or none that the gateway could read.
            self.waiting.clear();
            return secrets;
        };
        self.waiting.retain(|name, _| set.names().contains(&name.as_str()));
        for waiting in self.waiting.values() {
            if let Ok(grant) = Grant::from_wire(waiting.text.expose()) {
                set = set.with_grant(&grant);
            }
        }
        set.to_wire().map_or(secrets, SecretText::new)
    }
}

/// A set of secrets in which those with these names are as they were `before`; one sentence says why there is none.
pub(crate) fn with_unchanged(
    secrets: SecretText,
    names: &[String],
    before: Option<&SecretText>,
) -> Result<SecretText, String> {
    let Some(before) = before.filter(|_| !names.is_empty()) else { return Ok(secrets) };
    let read = |text: &SecretText| Credentials::from_wire(text.expose()).map_err(|error| error.to_string());
    let all = read(&secrets)?.with_unchanged(names, &read(before)?);
    all.to_wire().map(SecretText::new).map_err(|error| error.to_string())
}

/// A set of secrets with newer tokens; `None` when there is no such secret in it.
pub(crate) fn renewed(secrets: Option<&SecretText>, grant: &Grant) -> Option<SecretText> {
    let set = Credentials::from_wire(secrets?.expose()).ok()?;
    if !set.names().contains(&grant.name()) {
        return None;
    }
    set.with_grant(grant).to_wire().ok().map(SecretText::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As crate `vault` writes one.
    fn grant(name: &str, token: &str) -> SecretText {
        use base64::Engine;
        let value = base64::engine::general_purpose::STANDARD.encode(token);
        let text = format!(
            r#"{{"name":"{name}","tokens":[{{"field":"refresh_token","value":"{value}","sentinels":["stands-for-{token}"]}}],"ends":4000000000,"client":[]}}"#
        );
        SecretText::new(text.into())
    }

    fn secrets(names: &[&str]) -> SecretText {
        let one = |name: &&str| {
            let key = vec!["1"; 32].join(",");
            format!(
                r#"{{"name":"{name}","binding":{{"hosts":["api.example"],"places":["header:authorization"]}},"value":{{"SignIn":{{"endpoint":{{"service":"mine","hosts":["auth.example"],"paths":["/t"],"resources":["api.example"],"body":"form"}},"key":[{key}],"sandbox":"box","grant":null}}}}}}"#
            )
        };
        let list: Vec<String> = names.iter().map(one).collect();
        SecretText::new(format!("[{}]", list.join(",")).into())
    }

    #[test]
    fn exactly_one_client_has_a_grant_until_it_has_kept_it() {
        let mut grants = Grants::default();
        assert_eq!(grants.put(&grant("a", "first")).unwrap().name(), "a");
        assert_eq!(grants.hand(&[]), None);
        let handed = grants.hand(&[3, 4]).unwrap();
        assert_eq!((handed.client, handed.text.expose()), (3, grant("a", "first").expose()));
        assert_eq!(grants.hand(&[3, 4]), None, "nobody else gets it");
        // It goes without a word: the next one gets it.
        grants.left(3);
        let again = grants.hand(&[4]).unwrap();
        assert_eq!((again.client, again.number), (4, handed.number));
        // What another one says means nothing.
        grants.answered(5, again.number, true);
        assert_eq!(grants.len(), 1);
        grants.answered(4, again.number, false);
        assert_eq!(grants.hand(&[4]), None, "it could not keep it");
        let last = grants.hand(&[4, 6]).unwrap();
        assert_eq!(last.client, 6);
        grants.answered(6, last.number, true);
        assert_eq!(grants.len(), 0);
        assert_eq!(grants.hand(&[7]), None);
    }

    #[test]
    fn a_newer_grant_replaces_one_that_is_being_kept() {
        let mut grants = Grants::default();
        grants.put(&grant("a", "first"));
        let first = grants.hand(&[1]).unwrap();
        grants.put(&grant("a", "second"));
        grants.answered(1, first.number, true);
        let second = grants.hand(&[1]).unwrap();
        assert_eq!(second.text.expose(), grant("a", "second").expose());
        assert!(grants.put(&SecretText::new("{".to_owned().into())).is_none());
        for number in 0..100 {
            grants.put(&grant(&format!("n{number}"), "x"));
        }
        assert_eq!(grants.len(), MOST);
    }

    #[test]
    fn secrets_that_are_set_again_have_the_tokens_that_wait() {
        let mut grants = Grants::default();
        let first = grants.put(&grant("a", "first")).unwrap();
        let refresh = |text: &SecretText, name| {
            let set = Credentials::from_wire(text.expose()).unwrap();
            set.refresh(name).map(|refresh| String::from_utf8(refresh.body.to_vec()).unwrap())
        };
        assert_eq!(refresh(&secrets(&["a", "b"]), "a"), None);
        let expected = Some("grant_type=refresh_token&refresh_token=first".to_owned());
        assert_eq!(refresh(&renewed(Some(&secrets(&["a", "b"])), &first).unwrap(), "a"), expected);
        assert!(renewed(Some(&secrets(&["b"])), &first).is_none() && renewed(None, &first).is_none());
        let with = grants.added_to(secrets(&["a", "b"]));
        assert_eq!((refresh(&with, "a"), refresh(&with, "b")), (expected.clone(), None));
        // Set anew: forgotten, and another one's stay.
        grants.put(&grant("b", "first"));
        grants.forget(&["b".into()]);
        let with = grants.added_to(secrets(&["a", "b"]));
        assert_eq!((refresh(&with, "a"), refresh(&with, "b")), (expected.clone(), None));
        // One that is unchanged has what the gateway has, and one that is new nothing.
        let names = ["a".to_owned()];
        let before = renewed(Some(&secrets(&["a"])), &first).unwrap();
        let set = with_unchanged(secrets(&["a", "b"]), &names, Some(&before)).unwrap();
        assert_eq!((refresh(&set, "a"), refresh(&set, "b")), (expected, None));
        assert!(with_unchanged(SecretText::default(), &names, Some(&before)).is_err());
        assert_eq!(with_unchanged(SecretText::default(), &names, None).unwrap().expose(), "");
        // Removed: forgotten, also when it is set again later.
        assert_eq!(
            grants.added_to(secrets(&["b"])).expose(),
            Credentials::from_wire(secrets(&["b"]).expose()).unwrap().to_wire().unwrap().as_str()
        );
        assert_eq!(grants.len(), 0);
        assert_eq!(refresh(&grants.added_to(secrets(&["a"])), "a"), None);
    }
}
