//! `viv policy ls` and `inspect`: the rules, with their ids, and why one does not hold.

use std::io::IsTerminal;

use policy::{Decision, Policy, PolicySet, Preset, RuleView};
use sandbox::escape::{LONGEST, escaped};
use sandbox::places::Places;
use serde::Serialize;

use super::edit::PRESETS;
use super::{find, nearest, set};
use crate::cli::{RuleInspectOptions, RuleLsOptions};
use crate::commands::say;
use crate::failure::Failure;

/// The table's width on a terminal.
const COLUMNS: usize = 100;

/// What `--json` says before the rules.
#[derive(Debug, Serialize)]
struct Head<'s> {
    preset: String,
    sandbox: Option<&'s str>,
}

/// A rule as `--json` has it.
#[derive(Debug, Serialize)]
struct Object<'r> {
    id: String,
    layer: String,
    /// The preset, the kit, or where it was added.
    source: &'r str,
    decision: Decision,
    /// Whether it counts: a kit's permission may wait for its approval.
    active: bool,
    rule: &'r policy::Rule,
}

fn object<'r>(view: &'r RuleView<'r>) -> Object<'r> {
    Object {
        id: view.id.to_string(),
        layer: view.layer.to_string(),
        source: view.source,
        decision: view.rule.decision(),
        active: view.active,
        rule: view.rule,
    }
}

/// The verb `ls`.
pub(super) fn list(places: &Places, options: &RuleLsOptions) -> Result<u8, Failure> {
    let is_one_of = |given: &Option<String>, all: &[&str], what: &str| match given {
        Some(given) if !all.contains(&given.as_str()) => {
            Err(Failure::new(format!("\"{}\" is no {what}", escaped(given, 80))).hint(all.join(", ")))
        }
        _ => Ok(()),
    };
    is_one_of(&options.decision, &["allow", "deny"], "decision")?;
    is_one_of(&options.layer, &["floor", "global", "kit", "sandbox", "once"], "layer")?;
    is_one_of(&options.kind, &["network", "http", "all"], "type")?;
    let sandbox = find(places, options.sandbox.as_ref())?;
    let set = set(places, sandbox.as_ref())?;
    let policy = Policy::compile(&set);
    let is_asked = |view: &RuleView<'_>| {
        let decision = if view.rule.decision() == Decision::Allow { "allow" } else { "deny" };
        let kind = if view.rule.http().is_some() { "http" } else { "network" };
        options.decision.as_ref().is_none_or(|asked| asked == decision)
            && options.layer.as_ref().is_none_or(|asked| *asked == view.layer.to_string())
            && options.kind.as_ref().is_none_or(|asked| asked == kind || asked == "all")
            && (options.all || options.layer.is_some() || !is_presets(view))
    };
    let views: Vec<RuleView<'_>> = policy.rules().filter(is_asked).collect();
    if options.json {
        say(&json(&set, &views)?)?;
        return Ok(0);
    }
    let columns = if std::io::stdout().is_terminal() { COLUMNS } else { usize::MAX };
    say(&table(&set, &views, columns))?;
    Ok(0)
}

/// The preset in force, then a rule a line.
fn json(set: &PolicySet, views: &[RuleView<'_>]) -> Result<String, Failure> {
    let name = Some(set.sandbox.as_str()).filter(|name| !name.is_empty());
    let head = serde_json::to_string(&Head { preset: set.preset.to_string(), sandbox: name });
    let rules = views.iter().map(|view| serde_json::to_string(&object(view)));
    let lines: Result<Vec<String>, _> = std::iter::once(head).chain(rules).collect();
    Ok(lines.map_err(Failure::new)?.join("\n") + "\n")
}

fn is_presets(view: &RuleView<'_>) -> bool {
    view.rule.via() == policy::Via::Preset
}

fn table(set: &PolicySet, views: &[RuleView<'_>], columns: usize) -> String {
    let mut text = format!("preset {}\n", set.preset);
    for view in views {
        let mut line = format!("  {}", escaped(&view.id.to_string(), LONGEST));
        if let Some(reason) = view.rule.reason() {
            line.push_str(&format!("   {}", escaped(reason, LONGEST)));
        }
        if !view.active {
            line.push_str("   waits: viv policy approve");
        }
        if line.chars().count() > columns {
            line = line.chars().take(columns.saturating_sub(1)).chain(['…']).collect();
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The verb `inspect`.
pub(super) fn inspect(places: &Places, options: &RuleInspectOptions) -> Result<u8, Failure> {
    if let Ok(preset) = options.what.parse::<Preset>() {
        let set = PolicySet { preset, ..PolicySet::default() };
        let policy = Policy::compile(&set);
        for view in policy.rules().filter(is_presets) {
            let line = serde_json::to_string(&object(&view)).map_err(Failure::new)?;
            say(&format!("{line}\n"))?;
        }
        return Ok(0);
    }
    let sandbox = find(places, options.sandbox.as_ref())?;
    let policy = Policy::compile(&set(places, sandbox.as_ref())?);
    let views: Vec<RuleView<'_>> = policy.rules().collect();
    let wanted = options.what.as_str();
    let exact: Vec<&RuleView<'_>> = views.iter().filter(|view| view.id.as_str() == wanted).collect();
    let found = if exact.is_empty() {
        views.iter().filter(|view| view.id.as_str().starts_with(wanted)).collect()
    } else {
        exact
    };
    if found.is_empty() {
        let ids: Vec<&str> = views.iter().map(|view| view.id.as_str()).chain(PRESETS).collect();
        let failure = Failure::new(format!("there is no rule called \"{}\"", escaped(wanted, 200)));
        return Err(match nearest(wanted, &ids) {
            Some(id) => failure.hint(format!("did you mean {}?", escaped(&id, 200))),
            None => failure.hint("viv policy ls -a shows all with their ids"),
        });
    }
    for view in found {
        let text = serde_json::to_string_pretty(&object(view)).map_err(Failure::new)?;
        say(&format!("{text}\n"))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use policy::Rule;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_preset_in_force_comes_first() {
        let rule = Rule::new(Decision::Allow, "a.example:443".parse().unwrap());
        let set = PolicySet { preset: Preset::DenyAll, local: vec![rule], ..PolicySet::default() };
        let lines = |set: &PolicySet| -> Vec<Value> {
            let policy = Policy::compile(set);
            let text = super::json(set, &policy.rules().collect::<Vec<_>>()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let all = lines(&set);
        assert_eq!(all[0], json!({"preset": "deny-all", "sandbox": null}));
        assert_eq!(all[1]["id"], "sandbox/allow:a.example:443");
        let of = PolicySet { sandbox: "box".into(), local: Vec::new(), ..set };
        assert_eq!(lines(&of), [json!({"preset": "deny-all", "sandbox": "box"})]);
    }
}
