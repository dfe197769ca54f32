//! Layers, and their form in files and control words.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::preset::Preset;
use crate::rule::Rule;

/// Where a rule stands. A deny of any layer beats an allow of every layer, so the order is that of reading, not of strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// Built in: the guard.
    Floor,
    /// The preset and the user's rules for all sandboxes.
    Global,
    /// What a kit brings.
    Kit,
    /// The sandbox's own rules.
    Sandbox,
    /// A yes to a question for as long as the sandbox runs; in memory only.
    Once,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layer::Floor => "floor",
            Layer::Global => "global",
            Layer::Kit => "kit",
            Layer::Sandbox => "sandbox",
            Layer::Once => "once",
        })
    }
}

/// The number of the files' form. Another one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Schema;

impl Schema {
    /// The number that is written.
    pub const NUMBER: u32 = 1;
}

impl TryFrom<u32> for Schema {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        if number == Self::NUMBER {
            Ok(Self)
        } else {
            Err(format!("schema {number} is not known; this version of viv knows {}", Self::NUMBER))
        }
    }
}

impl From<Schema> for u32 {
    fn from(_: Schema) -> Self {
        Schema::NUMBER
    }
}

/// A kit's rules as they count for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitRules {
    /// The kit's name.
    pub kit: String,
    /// Its version.
    pub version: String,
    /// Whether the user approved this version. Without it the kit's allows do not count under `deny-all`, and reach no
    /// guarded address and no service of the host under any preset. Its denies always count.
    #[serde(default)]
    pub approved: bool,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// All that is said about one sandbox: what [`crate::Policy::compile`] takes, and the body of the gateway's control word.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySet {
    /// The sandbox's name, for the commands in remedies.
    pub sandbox: String,
    /// The preset that holds for it.
    #[serde(default)]
    pub preset: Preset,
    /// Addresses of the host, which are guarded.
    #[serde(default)]
    pub host_addresses: Vec<IpAddr>,
    /// The user's rules for all sandboxes.
    #[serde(default)]
    pub global: Vec<Rule>,
    /// The kits' rules.
    #[serde(default)]
    pub kits: Vec<KitRules>,
    /// The sandbox's own rules.
    #[serde(default)]
    pub local: Vec<Rule>,
    /// What was allowed until the sandbox stops.
    #[serde(default)]
    pub once: Vec<Rule>,
}

/// That a kit's rules were looked at and agreed to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The kit.
    pub kit: String,
    /// The version.
    pub version: String,
    /// The digest of what was approved; whoever reads the kit computes and compares it.
    pub digest: String,
}

/// The user's `policy.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlobalFile {
    /// Always 1.
    pub schema: Schema,
    /// The preset of all sandboxes without one of their own.
    #[serde(default)]
    pub preset: Preset,
    /// Rules for all sandboxes.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Approved kits.
    #[serde(default)]
    pub approvals: Vec<Approval>,
}

/// A sandbox's `policy.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxFile {
    /// Always 1.
    pub schema: Schema,
    /// A preset of its own instead of the global one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Its rules.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// A rules file that stands in for a kit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KitFile {
    /// Always 1.
    pub schema: Schema,
    /// The kit's name.
    pub kit: String,
    /// Its version.
    pub version: String,
    /// Its rules.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_checked() {
        let file: GlobalFile = serde_json::from_str(r#"{"schema":1}"#).unwrap();
        assert_eq!(file, GlobalFile::default());
        assert_eq!(file.preset, Preset::Balanced);
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<GlobalFile>(&text).unwrap(), file);
        for (text, part) in [
            (r#"{"schema":2}"#, "schema 2 is not known"),
            ("{}", "missing field `schema`"),
            (r#"{"schema":1,"presets":"balanced"}"#, "unknown field `presets`"),
            (r#"{"schema":1,"preset":"open"}"#, "unknown variant `open`"),
            (r#"{"schema":1,"rules":[{"decision":"deny","resource":"*"}]}"#, "lone '*'"),
        ] {
            let error = serde_json::from_str::<GlobalFile>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let set = PolicySet { sandbox: "a".to_owned(), ..PolicySet::default() };
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<PolicySet>(&text).unwrap(), set);
        assert!(serde_json::from_str::<PolicySet>(r#"{"sandbox":"a","extra":1}"#).is_err());
    }
}
