//! `viv policy init`, `allow`, `deny`, `rm` and `reset`.

use policy::{
    Decision, HostPattern, Methods, PathPattern, Ports, Preset, Protocols, Resource, Rule, RuleError, Via,
};
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::Sandbox;
use sandbox::network::policy_files;
use sandbox::places::Places;

use super::{find, forget_once, mistake, nearest, once, without_word};
use crate::cli::{AllowOptions, DenyOptions, InitOptions, ResetOptions, RuleOptions, RuleRmOptions};
use crate::commands::lifecycle::ask;
use crate::commands::{may_interact, say};
use crate::failure::{Failure, OURS};

/// Most rules in one file.
const MOST_RULES: usize = 2000;

/// The presets by name.
pub(super) const PRESETS: [&str; 3] = ["allow-all", "balanced", "deny-all"];

pub(super) fn preset(text: &str) -> Result<Preset, Failure> {
    text.parse().map_err(|_| {
        let failure = Failure::new(format!("there is no preset called \"{}\"", escaped(text, 80)));
        match nearest(text, &PRESETS) {
            Some(name) => failure.hint(format!("did you mean {name}?")),
            None => failure.hint("there are allow-all, balanced and deny-all"),
        }
    })
}

/// The verb `init`.
pub(super) fn init(places: &Places, options: &InitOptions) -> Result<u8, Failure> {
    let preset = preset(&options.preset)?;
    let (whose, rules) = match find(places, options.sandbox.as_ref())? {
        Some(sandbox) => {
            let rules = policy_files::change_local(&sandbox, |file| {
                file.preset = Some(preset);
                Ok(file.rules.len())
            })?;
            (format!("for {}", sandbox.spec.name), rules)
        }
        None => {
            let rules = policy_files::change_global(places, |file| {
                file.preset = preset;
                Ok(file.rules.len())
            })?;
            ("for all sandboxes".into(), rules)
        }
    };
    let kept = match rules {
        0 => String::new(),
        1 => ", with the rule that is there".into(),
        count => format!(", with the {count} rules that are there"),
    };
    say(&format!("{preset} {whose}{kept}\n"))?;
    Ok(0)
}

/// The verb `allow`.
pub(super) fn allow(places: &Places, options: &AllowOptions) -> Result<u8, Failure> {
    add(places, Decision::Allow, &options.rule, &[], options.reason.as_ref())
}

/// The verb `deny`.
pub(super) fn deny(places: &Places, options: &DenyOptions) -> Result<u8, Failure> {
    add(places, Decision::Deny, &options.rule, &options.except, options.reason.as_ref())
}

fn add(
    places: &Places,
    decision: Decision,
    options: &RuleOptions,
    except: &[String],
    reason: Option<&String>,
) -> Result<u8, Failure> {
    // Nothing is written before all is understood.
    let rules = rules(decision, options, except, reason)?;
    let sandbox = find(places, options.sandbox.as_ref())?;
    let scope = sandbox.as_ref().map_or("global", |_| "sandbox");
    let ids: Vec<String> = rules.iter().map(|rule| format!("{scope}/{}", rule.key())).collect();
    let services: Vec<String> = rules.iter().filter_map(service).collect();
    let known = change(places, sandbox.as_ref(), |all| {
        let known: Vec<bool> = rules.into_iter().map(|rule| policy::upsert(all, rule)).collect();
        if all.len() > MOST_RULES { Err(too_many()) } else { Ok(known) }
    })?;
    for (id, known) in ids.iter().zip(known) {
        say(&format!("{id}{}\n", if known { "   was there already" } else { "" }))?;
    }
    for service in services {
        eprintln!("viv: {service}");
    }
    Ok(0)
}

/// What is said of an allow by an address of this host's loopback, which opens more than who writes it may think.
fn service(rule: &Rule) -> Option<String> {
    let HostPattern::Network(network) = rule.resource().hosts() else { return None };
    if rule.decision() == Decision::Deny || !network.addr().is_loopback() {
        return None;
    }
    let ports = rule.resource().ports();
    let (what, port) = match ports {
        Ports::ALL => ("EVERY port".to_owned(), String::new()),
        _ => (format!("port {ports}"), format!(":{ports}")),
    };
    Some(format!(
        "this opens {what} of this host, as localhost:{ports} does: host.viv.internal{port} in the guest, whose own {} needs no rule",
        network.addr()
    ))
}

fn too_many() -> sandbox::Error {
    sandbox::Error::Mistake {
        why: format!("a policy has {MOST_RULES} rules at most"),
        hint: "viv policy rm takes some back; a rule may be for a whole domain:  '**.example.com'".into(),
    }
}

/// Changes the rules of a sandbox, or those of all.
pub(super) fn change<T>(
    places: &Places,
    sandbox: Option<&Sandbox>,
    change: impl FnOnce(&mut Vec<Rule>) -> sandbox::Result<T>,
) -> Result<T, Failure> {
    Ok(match sandbox {
        Some(sandbox) => policy_files::change_local(sandbox, |file| change(&mut file.rules))?,
        None => policy_files::change_global(places, |file| change(&mut file.rules))?,
    })
}

fn rules(
    decision: Decision,
    options: &RuleOptions,
    except: &[String],
    reason: Option<&String>,
) -> Result<Vec<Rule>, Failure> {
    let wrong = |error: RuleError| {
        Failure::new(escaped(&error.to_string(), LONGEST)).hint("viv policy allow --help has examples")
    };
    let resources = resources(without_word(&options.resources))?;
    let except = resources_of(except)?;
    let protocols = options.protocol.as_deref().map(Protocols::parse).transpose();
    let protocols = protocols.map_err(|error| part(&error, "--protocol tcp, udp or tcp,udp"))?;
    let http = http(options.method.as_deref(), options.path.as_deref())?;
    let rule = |resource: Resource| -> Result<Rule, RuleError> {
        let mut rule = Rule::new(decision, resource).with_via(Via::Added);
        if let Some(protocols) = protocols {
            rule = rule.with_protocols(protocols)?;
        }
        if let Some((methods, path)) = http.clone() {
            rule = rule.with_http(methods, path)?;
        }
        if !except.is_empty() {
            rule = rule.with_except(except.clone())?;
        }
        match reason {
            Some(reason) => rule.with_reason(reason.clone()),
            None => Ok(rule),
        }
    };
    resources.into_iter().map(|resource| rule(resource).map_err(wrong)).collect()
}

/// The HTTP part of a rule, if it has one: a method without a path is for all paths, and the other way round.
fn http(method: Option<&str>, path: Option<&str>) -> Result<Option<(Methods, PathPattern)>, Failure> {
    if method.is_none() && path.is_none() {
        return Ok(None);
    }
    let methods = Methods::parse(method.unwrap_or("ANY"));
    let methods = methods.map_err(|error| part(&error, "--method GET,HEAD or ANY"))?;
    let path = path.map_or(Ok(PathPattern::all()), PathPattern::parse);
    Ok(Some((methods, path.map_err(|error| part(&error, "--path '/docs/**'"))?)))
}

fn part(error: &policy::SyntaxError, form: &str) -> Failure {
    Failure::new(escaped(&error.to_string(), LONGEST)).hint(form)
}

fn resources(given: &[String]) -> Result<Vec<Resource>, Failure> {
    let all = resources_of(given)?;
    if all.is_empty() { Err(Failure::new("no host or network is named")) } else { Ok(all) }
}

fn resources_of(given: &[String]) -> Result<Vec<Resource>, Failure> {
    let lists: Result<Vec<_>, _> = given.iter().map(|list| Resource::parse_list(list)).collect();
    Ok(lists.map_err(|error| mistake(&error))?.concat())
}

/// One thing that `rm` is to take back.
enum Asked<'o> {
    /// As `viv policy ls` shows it, or without the layer.
    Id(&'o str),
    Resource(Resource),
}

/// Whether all rules on a resource are meant, or those with this HTTP part alone.
type Http = Option<(Methods, PathPattern)>;

impl Asked<'_> {
    fn fits(&self, rule: &Rule, scope: &str, http: &Http) -> bool {
        match self {
            Self::Id(id) => strip(id, scope) == rule.key(),
            Self::Resource(resource) => {
                resource == rule.resource()
                    && http.as_ref().is_none_or(|(methods, path)| {
                        rule.http().is_some_and(|own| own.methods == *methods && own.path == *path)
                    })
            }
        }
    }
}

/// The verb `rm`. What is there is taken back, whatever else is asked for and is not.
pub(super) fn remove(places: &Places, options: &RuleRmOptions) -> Result<u8, Failure> {
    let named = [without_word(&options.resources), &options.named].concat();
    if named.is_empty() && options.id.is_empty() {
        return Err(Failure::new("no rule is named").hint("viv policy ls shows the rules with their ids"));
    }
    let ids = options.id.iter().map(|id| Asked::Id(id));
    let asked: Vec<Asked<'_>> = ids.chain(resources_of(&named)?.into_iter().map(Asked::Resource)).collect();
    let http = http(options.method.as_deref(), options.path.as_deref())?;
    let sandbox = find(places, options.sandbox.as_ref())?;
    let scope = sandbox.as_ref().map_or("global", |_| "sandbox");
    let is_meant = |rule: &Rule, scope: &str| asked.iter().any(|asked| asked.fits(rule, scope, &http));
    // Before anything is written: a sandbox that cannot be asked would go on allowing what was taken back.
    let answers: Vec<Rule> =
        once(sandbox.as_ref())?.into_iter().filter(|rule| is_meant(rule, "once")).collect();
    forget_once(sandbox.as_ref(), answers.iter().map(Rule::key).collect())?;
    let (gone, others) = change(places, sandbox.as_ref(), |all| {
        let (gone, stay): (Vec<Rule>, Vec<Rule>) =
            std::mem::take(all).into_iter().partition(|rule| is_meant(rule, scope));
        let others: Vec<String> = stay.iter().map(Rule::key).collect();
        *all = stay;
        Ok((gone, others))
    })?;
    for (rules, layer) in [(&gone, scope), (&answers, "once")] {
        for rule in rules {
            say(&format!("{layer}/{}\n", rule.key()))?;
        }
    }
    let is_there = |asked: &&Asked<'_>| {
        gone.iter().any(|rule| asked.fits(rule, scope, &http))
            || answers.iter().any(|rule| asked.fits(rule, "once", &http))
    };
    let missing = asked.iter().filter(|asked| !is_there(asked));
    let mut missing: Vec<Failure> =
        missing.map(|asked| no_such_rule(asked, scope, &others, sandbox.as_ref())).collect();
    let last = missing.pop();
    missing.iter().for_each(Failure::print);
    last.map_or(Ok(0), Err)
}

fn strip<'i>(id: &'i str, scope: &str) -> &'i str {
    id.strip_prefix(scope).and_then(|id| id.strip_prefix('/')).unwrap_or(id)
}

fn no_such_rule(asked: &Asked<'_>, scope: &str, others: &[String], sandbox: Option<&Sandbox>) -> Failure {
    let asked = match asked {
        Asked::Id(id) => strip(id, scope).to_owned(),
        Asked::Resource(resource) => resource.to_string(),
    };
    let asked = escaped(&asked, 200);
    let whose =
        sandbox.map_or_else(|| "for all sandboxes".to_owned(), |sandbox| format!("of {}", sandbox.spec.name));
    let failure = Failure::new(format!("no rule {whose} is on {asked}"));
    let names: Vec<&str> = others.iter().map(String::as_str).collect();
    let near = nearest(&asked, &names)
        .or_else(|| {
            let same_host = |key: &&&str| key.split(':').nth(1).is_some_and(|host| host == asked);
            names.iter().find(same_host).map(|key| (*key).to_owned())
        })
        .or_else(|| nearest(&format!("allow:{asked}"), &names));
    match near {
        Some(key) => failure.hint(format!("did you mean --id {}?", escaped(&key, 200))),
        None => match sandbox {
            Some(sandbox) => failure.hint(format!("viv policy ls {} shows all", sandbox.spec.name)),
            None => failure.hint("viv policy ls shows all; those of one sandbox need --sandbox NAME"),
        },
    }
}

/// The verb `reset`.
pub(super) fn reset(places: &Places, options: &ResetOptions, no_input: bool) -> Result<u8, Failure> {
    let sandbox = find(places, options.sandbox.as_ref())?;
    let (path, what) = match &sandbox {
        Some(sandbox) => (policy_files::sandbox_path(sandbox), format!("the rules of {}", sandbox.spec.name)),
        None => (
            policy_files::global_path(places),
            "the preset, the rules for all sandboxes and the approvals of kits".to_owned(),
        ),
    };
    if !path.exists() && once(sandbox.as_ref())?.is_empty() {
        say("There is nothing to reset.\n")?;
        return Ok(0);
    }
    if !options.force {
        if !may_interact(no_input) {
            return Err(Failure::new("viv policy reset asks before it deletes, and there is nobody to ask")
                .hint("viv policy reset -f does not ask"));
        }
        eprintln!("This deletes {what}.");
        if !ask("What sandboxes have rules of their own for stays. Go on?")? {
            eprintln!("Nothing was deleted.");
            return Ok(OURS);
        }
    }
    // What was said yes to while this one was asked is gone, too.
    forget_once(sandbox.as_ref(), once(sandbox.as_ref())?.iter().map(Rule::key).collect())?;
    let aside = match &sandbox {
        Some(sandbox) => policy_files::reset_local(sandbox)?,
        None => policy_files::reset_global(places)?,
    };
    if let Some(aside) = aside {
        eprintln!("viv: what was there lies in {}", escaped(&places.short(&aside), LONGEST));
    }
    let now =
        if sandbox.is_some() { "It has no rules of its own now." } else { "balanced for all sandboxes" };
    say(&format!("{now}\n"))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, PolicyCommand};

    fn places(root: &Path) -> Places {
        let folder = |name: &str| root.join(name);
        Places { state: folder("s"), cache: folder("c"), config: folder("e"), home: root.into() }
    }

    /// `viv policy` with these words.
    fn policy(places: &Places, words: &str) -> Result<u8, Failure> {
        let words: Vec<&str> = words.split(' ').collect();
        match Cli::parse_from([&["viv", "policy"], &words[..]].concat()).command {
            Command::Policy(options) => match options.command {
                PolicyCommand::Allow(options) => allow(places, &options),
                PolicyCommand::Deny(options) => deny(places, &options),
                PolicyCommand::Rm(options) => remove(places, &options),
                _ => unreachable!("no other is asked for"),
            },
            _ => unreachable!("it is what was asked for"),
        }
    }

    fn keys(places: &Places) -> Vec<String> {
        policy_files::global(places).unwrap().rules.iter().map(Rule::key).collect()
    }

    #[test]
    fn an_allow_of_the_hosts_loopback_points_to_localhost() {
        let said = |decision, resource: &str| service(&Rule::new(decision, resource.parse().unwrap()));
        let of_port = said(Decision::Allow, "127.0.0.1:8080").unwrap();
        assert!(
            of_port.contains(
                "opens port 8080 of this host, as localhost:8080 does: host.viv.internal:8080 in the guest"
            ),
            "{of_port}"
        );
        assert!(said(Decision::Allow, "[::1]:80").unwrap().contains("as localhost:80 does"));
        assert!(
            said(Decision::Allow, "127.0.0.1")
                .unwrap()
                .contains("opens EVERY port of this host, as localhost:* does")
        );
        for resource in ["localhost:8080", "10.0.0.1:8080", "a.example:8080"] {
            assert_eq!(said(Decision::Allow, resource), None, "{resource}");
        }
        assert_eq!(said(Decision::Deny, "127.0.0.1:8080"), None);
    }

    #[test]
    fn what_is_not_there_is_said_and_the_rest_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let places = places(root.path());
        policy(&places, "allow a.example,b.example:443 c.example").unwrap();
        policy(&places, "deny d.example").unwrap();
        let failure = policy(&places, "rm a.example nosuch.example").unwrap_err();
        assert_eq!(failure.code, OURS);
        assert_eq!(failure.message(), "no rule for all sandboxes is on nosuch.example");
        assert_eq!(keys(&places), ["allow:b.example:443", "allow:c.example", "deny:d.example"]);
        // Each of several is looked for, by whatever it is named.
        let failure = policy(&places, "rm --id global/allow:c.example --id deny:e.example").unwrap_err();
        assert!(failure.message().ends_with("is on deny:e.example"), "{}", failure.message());
        assert!(failure.hint.unwrap().contains("--id deny:d.example"));
        assert_eq!(keys(&places), ["allow:b.example:443", "deny:d.example"]);
        // One that is named twice is there.
        assert_eq!(policy(&places, "rm --id deny:d.example d.example b.example:443").unwrap(), 0);
        assert!(keys(&places).is_empty());
    }
}
