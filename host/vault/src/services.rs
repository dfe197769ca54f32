//! The services that are known: which hosts a secret is for, where it stands in a request, what a placeholder must look like so that the tool
//! takes it, and which variables the tool reads. The table is `services.json`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::binding::Place;
use crate::hosts::HostPattern;
use crate::oauth::Endpoint;
use crate::shape::Shape;

/// One service of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What it is called in `viv secret set`.
    pub name: String,
    /// What it is called in a sentence.
    pub title: String,
    /// Where its secret may go.
    pub hosts: Vec<HostPattern>,
    /// What the secret consists of.
    #[serde(default)]
    pub kind: Kind,
    /// The placeholder's form; with AWS that of the secret access key.
    pub shape: Shape,
    /// The form of an AWS access key id.
    #[serde(default)]
    pub key_id: Option<Shape>,
    /// Where it stands in requests.
    pub places: Vec<Place>,
    /// Variables in the guest. `{value}` and `{key_id}` are placeholders; other text is as it is.
    pub env: BTreeMap<String, String>,
    /// Variables of the host that `viv secret import` looks at, the best one first. With AWS all of them together.
    pub import: Vec<String>,
    /// How git is told to use it.
    #[serde(default)]
    pub git: Option<Git>,
}

/// What a service's secret consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One text.
    #[default]
    Token,
    /// An access key id, a secret access key, and a session token at times; it never leaves, requests are signed with it.
    Aws,
}

/// Git over HTTPS: the placeholder is the password of this user.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Git {
    /// The beginning of the URLs, without a path.
    pub url: String,
    /// The user's name that goes with a token.
    pub user: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    services: Vec<Service>,
    oauth: Vec<Endpoint>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| match serde_json::from_str(include_str!("services.json")) {
        Ok(table) => table,
        // The file is part of the program, and a test reads it.
        Err(error) => unreachable!("services.json: {error}"),
    })
}

/// All services, in the table's order.
pub fn all() -> &'static [Service] {
    &table().services
}

/// The service of this name.
pub fn find(name: &str) -> Option<&'static Service> {
    all().iter().find(|service| service.name == name)
}

/// The token endpoint of a service where people can sign in.
pub fn endpoint(name: &str) -> Option<&'static Endpoint> {
    table().oauth.iter().find(|endpoint| endpoint.service == name)
}

/// The names of services where people can sign in.
pub fn with_sign_in() -> Vec<&'static str> {
    table().oauth.iter().map(|endpoint| endpoint.service.as_str()).collect()
}

/// The service whose name is closest to a mistyped one.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for service in all() {
        let distance = edits(&name, &service.name);
        if distance <= 2 && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, &service.name));
        }
    }
    best.map(|(_, name)| name)
}

/// Levenshtein's distance.
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut corner = i;
        let mut left = i.saturating_add(1);
        let mut next = vec![left];
        for (b, above) in other.chars().zip(row.iter().skip(1)) {
            let value = corner.saturating_add(usize::from(a != b)).min(above.min(&left).saturating_add(1));
            corner = *above;
            left = value;
            next.push(value);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_table_is_whole() {
        let wanted = [
            "anthropic",
            "cursor",
            "droid",
            "github",
            "google",
            "groq",
            "mistral",
            "openrouter",
            "xai",
            "nebius",
            "openai",
            "copilot",
            "devin",
            "aws",
            "npm",
            "pypi",
            "cargo",
            "huggingface",
            "gitlab",
            "bitbucket",
        ];
        let names: BTreeSet<&str> = all().iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, BTreeSet::from(wanted), "each once, and none is missing");
        assert_eq!(all().len(), wanted.len());
        for service in all() {
            let name = &service.name;
            assert!(
                !service.hosts.is_empty() && !service.places.is_empty() && !service.import.is_empty(),
                "{name}"
            );
            assert!(service.hosts.iter().all(|host| !host.to_string().contains(':')), "{name}: HTTPS only");
            assert_eq!(service.kind == Kind::Aws, service.key_id.is_some(), "{name}");
            assert_eq!(service.kind == Kind::Aws, service.places == [Place::SigV4], "{name}");
            assert!(service.env.values().any(|value| value == "{value}"), "{name}");
            for value in service.env.values() {
                assert!(
                    matches!(value.as_str(), "{value}" | "{key_id}") || !value.contains('{'),
                    "{name}: {value}"
                );
            }
            if let Some(git) = &service.git {
                let host = git.url.strip_prefix("https://").unwrap();
                assert!(service.hosts.iter().any(|pattern| pattern.matches(host, 443)), "{name}");
                assert!(service.places.contains(&Place::Basic { user: None }), "{name}");
            }
        }
    }

    #[test]
    fn placeholders_look_as_the_tools_want_them() {
        let of = |name: &str| find(name).unwrap().shape.derive(&[3; 32], &["box", name]);
        assert!(of("github").starts_with("ghp_") && of("github").len() == 40);
        assert!(of("gitlab").starts_with("glpat-") && of("gitlab").len() == 26);
        assert!(of("huggingface").starts_with("hf_") && of("huggingface").len() == 37);
        assert!(of("npm").starts_with("npm_") && of("npm").len() == 40);
        assert!(of("anthropic").starts_with("sk-ant-api03-") && of("anthropic").len() == 108);
        assert!(of("google").starts_with("AIza") && of("google").len() == 39);
        assert!(of("cargo").starts_with("cio") && of("cargo").len() == 35);
        assert_eq!(of("aws").len(), 40);
        let key_id = find("aws").unwrap().key_id.as_ref().unwrap().derive(&[3; 32], &["box"]);
        assert!(key_id.starts_with("AKIA") && key_id.len() == 20);
        assert!(
            key_id.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte)),
            "{key_id}"
        );
    }

    #[test]
    fn variables_belong_to_one_service_each() {
        let mut seen = BTreeSet::new();
        for name in all().iter().flat_map(|service| service.env.keys()) {
            assert!(seen.insert(name), "{name} is set by two services");
            assert!(!name.contains('=') && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
        }
    }

    #[test]
    fn endpoints_belong_to_services() {
        for name in with_sign_in() {
            let endpoint = endpoint(name).unwrap();
            assert!(find(name).is_some(), "{name}");
            assert!(endpoint.paths.iter().all(|path| path.starts_with('/')));
            assert!(!endpoint.resources.is_empty());
        }
    }

    #[test]
    fn a_mistyped_name_has_a_neighbour() {
        assert_eq!(nearest("gihub"), Some("github"));
        assert_eq!(nearest("Antropic"), Some("anthropic"));
        assert_eq!(nearest("something"), None);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
