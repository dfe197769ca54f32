//! Rules: one decision about one resource.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::command;
use crate::error::SyntaxError;
use crate::http::{Methods, PathPattern};
use crate::resource::{HostPattern, Resource};
use crate::target::Protocol;

/// Longest reason, in characters.
const LONGEST_REASON: usize = 300;
/// Most exceptions of one deny.
const MOST_EXCEPTIONS: usize = 1000;

/// What a rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It may pass, unless something denies it.
    Allow,
    /// It may not pass, whatever allows it.
    Deny,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Decision::Allow => "allow",
            Decision::Deny => "deny",
        })
    }
}

/// The protocols of a rule; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Protocol>", into = "Vec<Protocol>")]
pub enum Protocols {
    /// TCP alone, what an allow has unless it says otherwise.
    Tcp,
    /// UDP alone.
    Udp,
    /// Both, what a deny has unless it says otherwise.
    Both,
}

impl Protocols {
    /// Reads `tcp`, `udp` or `tcp,udp`, in any case.
    ///
    /// # Errors
    /// With the column of what is no protocol.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut list = Vec::new();
        let mut offset = 0;
        for piece in text.split(',') {
            let blank = piece.chars().take_while(|c| *c == ' ').count();
            list.push(match piece.trim_matches(' ').to_ascii_lowercase().as_str() {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                other => {
                    let found =
                        if other.is_empty() { "nothing".to_owned() } else { crate::error::shown(other) };
                    return Err(SyntaxError::new(
                        text,
                        offset + blank,
                        format!("expected tcp, udp or tcp,udp, found {found}"),
                    ));
                }
            });
            offset += piece.chars().count() + 1;
        }
        Self::try_from(list).map_err(|problem| SyntaxError::new(text, 0, problem))
    }

    /// Whether a protocol is one of them.
    #[must_use]
    pub fn contains(self, protocol: Protocol) -> bool {
        match self {
            Self::Tcp => protocol == Protocol::Tcp,
            Self::Udp => protocol == Protocol::Udp,
            Self::Both => true,
        }
    }

    fn of_default(decision: Decision, http: bool) -> Self {
        if http || decision == Decision::Allow { Self::Tcp } else { Self::Both }
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocols::Tcp => "tcp",
            Protocols::Udp => "udp",
            Protocols::Both => "tcp,udp",
        })
    }
}

impl TryFrom<Vec<Protocol>> for Protocols {
    type Error = String;
    fn try_from(list: Vec<Protocol>) -> Result<Self, String> {
        match (list.contains(&Protocol::Tcp), list.contains(&Protocol::Udp)) {
            (true, true) => Ok(Self::Both),
            (true, false) => Ok(Self::Tcp),
            (false, true) => Ok(Self::Udp),
            (false, false) => Err("expected at least one protocol".to_owned()),
        }
    }
}

impl From<Protocols> for Vec<Protocol> {
    fn from(protocols: Protocols) -> Self {
        [Protocol::Tcp, Protocol::Udp].into_iter().filter(|protocol| protocols.contains(*protocol)).collect()
    }
}

/// How a rule came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// By `viv policy allow` or `deny`.
    #[default]
    Added,
    /// By a yes to `--ask`.
    Approval,
    /// Made of what `--observe` saw.
    Observed,
    /// Part of a preset.
    Preset,
    /// Part of a kit.
    Kit,
}

/// The HTTP part of a rule: which requests it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpMatch {
    /// Methods.
    pub methods: Methods,
    /// Paths.
    pub path: PathPattern,
}

impl HttpMatch {
    /// Whether every request is meant.
    pub(crate) fn is_all(&self) -> bool {
        self.methods == Methods::Any && self.path.is_all()
    }
}

/// Why parts do not make a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A text within it.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// Methods and paths of a network.
    #[error("{0}: methods and paths are a host's, and this is a network; expected a host name")]
    HttpOfNetwork(Resource),
    /// Methods and paths of UDP.
    #[error("{0}: methods and paths need tcp; leave out --protocol udp")]
    HttpOfUdp(Resource),
    /// Exceptions of an allow.
    #[error("{0}: an exception belongs to a deny; to allow less, name less")]
    ExceptOfAllow(Resource),
    /// Too many exceptions.
    #[error("{0}: a deny has at most {MOST_EXCEPTIONS} exceptions")]
    Exceptions(Resource),
    /// A reason that cannot be shown.
    #[error("{0}: a reason is one line of at most {LONGEST_REASON} characters")]
    Reason(Resource),
}

/// One decision about one resource. What cannot hold together cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RuleForm", into = "RuleForm")]
pub struct Rule {
    decision: Decision,
    resource: Resource,
    protocols: Protocols,
    http: Option<HttpMatch>,
    except: Vec<Resource>,
    reason: Option<String>,
    via: Via,
}

impl Rule {
    /// A rule with the usual protocols: TCP for an allow, both for a deny.
    #[must_use]
    pub fn new(decision: Decision, resource: Resource) -> Self {
        let protocols = Protocols::of_default(decision, false);
        Self { decision, resource, protocols, http: None, except: Vec::new(), reason: None, via: Via::Added }
    }

    /// The same for these protocols.
    ///
    /// # Errors
    /// [`RuleError::HttpOfUdp`].
    pub fn with_protocols(self, protocols: Protocols) -> Result<Self, RuleError> {
        if self.http.is_some() && protocols != Protocols::Tcp {
            return Err(RuleError::HttpOfUdp(self.resource));
        }
        Ok(Self { protocols, ..self })
    }

    /// The same for some HTTP requests alone. Its protocol is TCP.
    ///
    /// # Errors
    /// [`RuleError::HttpOfNetwork`].
    pub fn with_http(self, methods: Methods, path: PathPattern) -> Result<Self, RuleError> {
        if matches!(self.resource.hosts(), HostPattern::Network(_)) {
            return Err(RuleError::HttpOfNetwork(self.resource));
        }
        Ok(Self { protocols: Protocols::Tcp, http: Some(HttpMatch { methods, path }), ..self })
    }

    /// The same with these exceptions; they switch off this rule for what they name, and no other.
    ///
    /// # Errors
    /// [`RuleError::ExceptOfAllow`], [`RuleError::Exceptions`].
    pub fn with_except(self, mut except: Vec<Resource>) -> Result<Self, RuleError> {
        if self.decision == Decision::Allow && !except.is_empty() {
            return Err(RuleError::ExceptOfAllow(self.resource));
        }
        if except.len() > MOST_EXCEPTIONS {
            return Err(RuleError::Exceptions(self.resource));
        }
        except.sort();
        except.dedup();
        Ok(Self { except, ..self })
    }

    /// The same with a reason, one line.
    ///
    /// # Errors
    /// [`RuleError::Reason`].
    pub fn with_reason(self, reason: impl Into<String>) -> Result<Self, RuleError> {
        let reason = reason.into();
        if reason.chars().count() > LONGEST_REASON
            || reason.chars().any(char::is_control)
            || reason.trim().is_empty()
        {
            return Err(RuleError::Reason(self.resource));
        }
        Ok(Self { reason: Some(reason), ..self })
    }

    /// The same with another origin.
    #[must_use]
    pub fn with_via(self, via: Via) -> Self {
        Self { via, ..self }
    }

    /// Allow or deny.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// Hosts and ports.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// Protocols.
    #[must_use]
    pub fn protocols(&self) -> Protocols {
        self.protocols
    }

    /// The requests it is about, if it is about some alone.
    #[must_use]
    pub fn http(&self) -> Option<&HttpMatch> {
        self.http.as_ref()
    }

    /// Its exceptions, sorted.
    #[must_use]
    pub fn except(&self) -> &[Resource] {
        &self.except
    }

    /// Why it is there.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// How it came to be.
    #[must_use]
    pub fn via(&self) -> Via {
        self.via
    }

    /// What the rule says without its exceptions and reason: `allow:example.com:443`, `deny:**.example.com`,
    /// `allow:docs.rs:443:GET,HEAD:/**`. Two rules of a layer with one key are one rule ([`upsert`]).
    #[must_use]
    pub fn key(&self) -> String {
        let mut key = format!("{}:{}", self.decision, self.resource);
        if self.protocols != Protocols::of_default(self.decision, self.http.is_some()) {
            key.push_str(&format!(":{}", self.protocols));
        }
        if let Some(http) = &self.http {
            key.push_str(&format!(":{}:{}", http.methods, http.path));
        }
        key
    }

    /// The command that makes this rule: in the sandbox of that name, or for all when the name is empty.
    #[must_use]
    pub fn command(&self, sandbox: &str) -> String {
        let mut words = command::start(&self.decision.to_string(), sandbox);
        words.push(self.resource.to_string());
        if self.protocols != Protocols::of_default(self.decision, self.http.is_some()) {
            words.extend(["--protocol".to_owned(), self.protocols.to_string()]);
        }
        if let Some(http) = &self.http {
            words.extend([
                "--method".to_owned(),
                http.methods.to_string(),
                "--path".to_owned(),
                http.path.to_string(),
            ]);
        }
        if !self.except.is_empty() {
            words.push("--except".to_owned());
            words.push(self.except.iter().map(ToString::to_string).collect::<Vec<_>>().join(","));
        }
        command::line(&words)
    }
}

/// Puts a rule among those of its layer: it takes the place of one with the same key, exceptions and reason included.
/// Returns whether it took a place.
pub fn upsert(rules: &mut Vec<Rule>, rule: Rule) -> bool {
    let key = rule.key();
    match rules.iter_mut().find(|other| other.key() == key) {
        Some(place) => {
            *place = rule;
            true
        }
        None => {
            rules.push(rule);
            false
        }
    }
}

impl fmt::Display for Rule {
    /// For lists: `allow example.com:443 GET,HEAD /** (tcp)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.decision, self.resource)?;
        if let Some(http) = &self.http {
            write!(f, " {} {}", http.methods, http.path)?;
        }
        if self.protocols != Protocols::of_default(self.decision, self.http.is_some()) {
            write!(f, " {}", self.protocols)?;
        }
        if !self.except.is_empty() {
            let list: Vec<String> = self.except.iter().map(ToString::to_string).collect();
            write!(f, " except {}", list.join(","))?;
        }
        Ok(())
    }
}

/// A rule in a file or a control word.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleForm {
    decision: Decision,
    resource: Resource,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocols: Option<Protocols>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    methods: Option<Methods>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathPattern>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    except: Vec<Resource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default)]
    via: Via,
}

impl TryFrom<RuleForm> for Rule {
    type Error = RuleError;
    fn try_from(form: RuleForm) -> Result<Self, RuleError> {
        let mut rule = Rule::new(form.decision, form.resource).with_via(form.via);
        if form.methods.is_some() || form.path.is_some() {
            let path = form.path.unwrap_or_else(PathPattern::all);
            rule = rule.with_http(form.methods.unwrap_or(Methods::Any), path)?;
        }
        if let Some(protocols) = form.protocols {
            rule = rule.with_protocols(protocols)?;
        }
        if let Some(reason) = form.reason {
            rule = rule.with_reason(reason)?;
        }
        rule.with_except(form.except)
    }
}

impl From<Rule> for RuleForm {
    fn from(rule: Rule) -> Self {
        let usual = Protocols::of_default(rule.decision, rule.http.is_some());
        let (methods, path) = rule.http.map(|http| (http.methods, http.path)).unzip();
        Self {
            decision: rule.decision,
            resource: rule.resource,
            protocols: (rule.protocols != usual).then_some(rule.protocols),
            methods,
            path,
            except: rule.except,
            reason: rule.reason,
            via: rule.via,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(text: &str) -> Resource {
        Resource::parse(text).unwrap()
    }

    #[test]
    fn what_does_not_hold_together_is_refused_with_a_sentence() {
        let http = |text: &str| {
            Rule::new(Decision::Allow, resource(text)).with_http(Methods::Any, PathPattern::all())
        };
        assert!(http("10.0.0.0/8").unwrap_err().to_string().contains("this is a network"));
        assert!(
            http("a.example")
                .unwrap()
                .with_protocols(Protocols::Both)
                .unwrap_err()
                .to_string()
                .contains("need tcp")
        );
        let except =
            Rule::new(Decision::Allow, resource("a.example")).with_except(vec![resource("b.example")]);
        assert!(except.unwrap_err().to_string().contains("belongs to a deny"));
        for reason in ["", "  ", "two\nlines", &"x".repeat(301)] {
            assert!(Rule::new(Decision::Allow, resource("a.example")).with_reason(reason).is_err());
        }
    }

    #[test]
    fn keys_and_commands_say_the_rule() {
        let plain = Rule::new(Decision::Allow, resource("example.com:443"));
        assert_eq!(plain.key(), "allow:example.com:443");
        assert_eq!(plain.command("box-1"), "viv policy allow --sandbox box-1 example.com:443");
        assert_eq!(plain.command(""), "viv policy allow example.com:443");
        let deny = Rule::new(Decision::Deny, resource("**.foo.com"))
            .with_except(vec![resource("jira.foo.com"), resource("a.foo.com:22")])
            .unwrap();
        assert_eq!(deny.key(), "deny:**.foo.com");
        assert_eq!(deny.command(""), "viv policy deny '**.foo.com' --except a.foo.com:22,jira.foo.com");
        let http = Rule::new(Decision::Allow, resource("api.x.org"))
            .with_http(Methods::parse("GET,POST").unwrap(), PathPattern::parse("/it's/**").unwrap())
            .unwrap();
        assert_eq!(http.key(), "allow:api.x.org:GET,POST:/it's/**");
        assert_eq!(
            http.command("a"),
            r#"viv policy allow --sandbox a api.x.org --method GET,POST --path '/it'\''s/**'"#
        );
        let udp = Rule::new(Decision::Allow, resource("x.org:53")).with_protocols(Protocols::Both).unwrap();
        assert_eq!(udp.key(), "allow:x.org:53:tcp,udp");
        assert_eq!(udp.to_string(), "allow x.org:53 tcp,udp");
    }

    #[test]
    fn a_rule_with_the_same_key_takes_the_place() {
        let mut rules = vec![Rule::new(Decision::Deny, resource("**.foo.com"))];
        let again = rules[0].clone().with_except(vec![resource("jira.foo.com")]).unwrap();
        assert!(upsert(&mut rules, again.clone()));
        assert_eq!(rules, [again]);
        assert!(!upsert(&mut rules, Rule::new(Decision::Allow, resource("**.foo.com"))));
        assert_eq!(rules.len(), 2);
    }

    #[test]
    fn json_is_checked() {
        let text = r#"{"decision":"allow","resource":"docs.rs:443","methods":["GET","HEAD"],"path":"/**","via":"added"}"#;
        let rule: Rule = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        for (bad, part) in [
            (r#"{"decision":"allow","resource":"docs.rs","ports":[443]}"#, "unknown field `ports`"),
            (r#"{"decision":"maybe","resource":"docs.rs"}"#, "unknown variant `maybe`"),
            (r#"{"decision":"allow","resource":"docs .rs"}"#, "column 5"),
            (r#"{"decision":"allow"}"#, "missing field `resource`"),
            (r#"{"decision":"allow","resource":"10.0.0.0/8","methods":["GET"]}"#, "this is a network"),
            (r#"{"decision":"allow","resource":"a.b","methods":[]}"#, "at least one method"),
            (r#"{"decision":"allow","resource":"a.b","protocols":[]}"#, "at least one protocol"),
            (r#"{"decision":"allow","resource":"a.b","except":["c.b"]}"#, "belongs to a deny"),
        ] {
            let error = serde_json::from_str::<Rule>(bad).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn protocols_are_read_at_their_column() {
        assert_eq!(Protocols::parse("TCP, udp"), Ok(Protocols::Both));
        for (text, column) in [("", 1), ("tcp,", 5), ("tcp, icmp", 6)] {
            assert_eq!(Protocols::parse(text).expect_err(text).column(), column);
        }
    }
}
