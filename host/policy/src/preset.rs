//! The presets, and the data of `balanced`.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::http::{Methods, PathPattern};
use crate::layers::Schema;
use crate::resource::Resource;
use crate::rule::{Decision, Protocols, Rule, RuleError, Via};

/// What `balanced` allows, with a reason each.
const BALANCED: &str = include_str!("balanced.json");

/// What holds before any rule of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Everything but guarded addresses and the host's services.
    AllowAll,
    /// What an agent has to read.
    #[default]
    Balanced,
    /// Nothing; kits' rules count after their approval alone.
    DenyAll,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 3] = [Preset::AllowAll, Preset::Balanced, Preset::DenyAll];

    /// The rules with where they come from: the preset's name and the group.
    #[must_use]
    pub fn rules(self) -> Vec<(String, Rule)> {
        match self {
            Preset::AllowAll => everything().into_iter().map(|rule| ("allow-all".to_owned(), rule)).collect(),
            Preset::Balanced => balanced().rules.clone(),
            Preset::DenyAll => Vec::new(),
        }
    }
}

fn everything() -> Option<Rule> {
    Resource::parse("**")
        .ok()
        .and_then(|all| Rule::new(Decision::Allow, all).with_protocols(Protocols::Both).ok())
        .map(|rule| rule.with_via(Via::Preset))
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Preset::AllowAll => "allow-all",
            Preset::Balanced => "balanced",
            Preset::DenyAll => "deny-all",
        })
    }
}

impl std::str::FromStr for Preset {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|preset| preset.to_string() == text).ok_or_else(|| {
            format!("expected allow-all, balanced or deny-all, found {}", crate::error::shown(text))
        })
    }
}

/// `balanced`, read.
#[derive(Debug)]
pub struct Balanced {
    /// The groups as they are in the data file, for lists and documents.
    pub groups: Vec<Group>,
    /// What is left out with reason.
    pub withheld: Vec<Withheld>,
    rules: Vec<(String, Rule)>,
}

/// Entries with one purpose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Part of the rules' names.
    pub id: String,
    /// What it is for.
    pub title: String,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// Resources that are allowed alike for one reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Hosts with their ports; 443 where none is given.
    pub hosts: Vec<String>,
    /// Methods, when some requests alone are allowed.
    #[serde(default)]
    pub methods: Option<Methods>,
    /// Paths, when some requests alone are allowed; one rule each.
    #[serde(default)]
    pub paths: Vec<PathPattern>,
    /// Why they are there, and why in this way.
    pub reason: String,
}

/// What is not allowed and not denied, with the reason that is shown when somebody runs into it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withheld {
    /// The host.
    pub host: Resource,
    /// Why it is left out.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[expect(dead_code, reason = "checked while it is read")]
    schema: Schema,
    groups: Vec<Group>,
    withheld: Vec<Withheld>,
}

/// The data of `balanced`, read once.
#[must_use]
pub fn balanced() -> &'static Balanced {
    static READ: OnceLock<Balanced> = OnceLock::new();
    // The text is part of the program and a test reads it: it cannot fail. If it did, nothing would be allowed.
    READ.get_or_init(|| {
        read(BALANCED).unwrap_or_else(|_| Balanced {
            groups: Vec::new(),
            withheld: Vec::new(),
            rules: Vec::new(),
        })
    })
}

fn read(text: &str) -> Result<Balanced, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut rules = Vec::new();
    for group in &file.groups {
        for entry in &group.entries {
            for rule in entry.rules().map_err(|error| error.to_string())? {
                rules.push((format!("balanced/{}", group.id), rule));
            }
        }
    }
    Ok(Balanced { groups: file.groups, withheld: file.withheld, rules })
}

impl Entry {
    fn rules(&self) -> Result<Vec<Rule>, RuleError> {
        let mut rules = Vec::new();
        for host in &self.hosts {
            let text = if host.contains(':') { host.clone() } else { format!("{host}:443") };
            let rule = Rule::new(Decision::Allow, Resource::parse(&text)?)
                .with_reason(self.reason.clone())?
                .with_via(Via::Preset);
            match (&self.methods, self.paths.as_slice()) {
                (None, []) => rules.push(rule),
                (methods, []) => {
                    rules.push(rule.with_http(methods.unwrap_or(Methods::Any), PathPattern::all())?)
                }
                (methods, paths) => {
                    for path in paths {
                        rules.push(rule.clone().with_http(methods.unwrap_or(Methods::Any), path.clone())?);
                    }
                }
            }
        }
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_data_is_read_and_says_each_thing_once() {
        let balanced = read(BALANCED).unwrap();
        assert_eq!(balanced.rules, super::balanced().rules);
        assert!(balanced.rules.len() > 150, "{}", balanced.rules.len());
        let keys: BTreeSet<String> = balanced.rules.iter().map(|(_, rule)| rule.key()).collect();
        assert_eq!(keys.len(), balanced.rules.len(), "two entries say the same");
        for group in &balanced.groups {
            assert!(
                !group.entries.is_empty() && group.id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
            );
            for entry in &group.entries {
                assert!(entry.reason.split_whitespace().count() >= 3, "{}", entry.reason);
            }
        }
    }

    #[test]
    fn presets_have_names() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse(), Ok(preset));
            assert_eq!(serde_json::to_string(&preset).unwrap(), format!("\"{preset}\""));
        }
        assert!("open".parse::<Preset>().unwrap_err().contains("expected allow-all"));
        assert_eq!(Preset::AllowAll.rules().len(), 1);
        assert!(Preset::DenyAll.rules().is_empty());
    }
}
