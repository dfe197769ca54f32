//! `viv policy check`: the verdict on one host or request, from the functions that the gateway uses.

use policy::{Outcome, Policy, Protocol, Question, Verdict};
use sandbox::escape::{LONGEST, escaped};
use sandbox::places::Places;
use serde::Serialize;

use super::{find, mistake, set, without_word};
use crate::cli::PolicyCheckOptions;
use crate::commands::say;
use crate::failure::Failure;

/// The exit code for what is not allowed.
const DENIED: u8 = 1;

/// The verdict, as `--json` has it.
#[derive(Debug, Serialize)]
struct Object<'v> {
    target: String,
    sandbox: Option<&'v str>,
    allowed: bool,
    /// `allow`, `inspect`, `deny` or `undecided`.
    outcome: Outcome,
    layer: String,
    rule: Option<String>,
    reason: &'v str,
    allow_with: Option<&'v str>,
}

/// The verb.
pub(super) fn run(places: &Places, options: &PolicyCheckOptions) -> Result<u8, Failure> {
    let text = without_word(&options.target).join(" ");
    let mut question = Question::parse(&text).map_err(|error| {
        mistake(&error).hint("[METHOD] HOST[:PORT][/PATH]:  viv policy check POST api.example.com/items")
    })?;
    match options.protocol.as_deref() {
        None | Some("tcp") => {}
        Some("udp") => question.protocol = Protocol::Udp,
        Some(_) => return Err(Failure::new("the protocol is neither tcp nor udp").hint("--protocol udp")),
    }
    let sandbox = find(places, options.sandbox.as_ref())?;
    let policy = Policy::compile(&set(places, sandbox.as_ref())?);
    let verdict = policy.check(&question);
    let name = sandbox.as_ref().map(|sandbox| sandbox.spec.name.as_str());
    if options.json {
        let object = Object {
            target: text,
            sandbox: name,
            allowed: verdict.is_open(),
            outcome: verdict.outcome,
            layer: verdict.reason.layer.to_string(),
            rule: verdict.reason.rule.as_ref().map(ToString::to_string),
            reason: &verdict.reason.text,
            allow_with: verdict.reason.remedy.as_deref(),
        };
        say(&format!("{}\n", serde_json::to_string(&object).map_err(Failure::new)?))?;
    } else {
        say(&plain(&text, &verdict))?;
    }
    Ok(if verdict.is_open() { 0 } else { DENIED })
}

fn plain(text: &str, verdict: &Verdict) -> String {
    let reason = &verdict.reason;
    let word = match verdict.outcome {
        Outcome::Allow => "allowed",
        Outcome::Inspect => "allowed for some requests only",
        Outcome::Deny => "denied",
        Outcome::Undecided => "refused",
    };
    let mut lines = format!("{}  {word}\n", escaped(text, LONGEST));
    match &reason.rule {
        Some(rule) => lines.push_str(&format!("  rule    {}\n", escaped(rule.as_str(), LONGEST))),
        None => lines.push_str("  rule    none\n"),
    }
    lines.push_str(&format!("  layer   {}\n", reason.layer));
    if !reason.text.is_empty() {
        lines.push_str(&format!("  reason  {}\n", escaped(&reason.text, LONGEST)));
    }
    if let Some(remedy) = &reason.remedy {
        lines.push_str(&format!("  allow   {}\n", escaped(remedy, LONGEST)));
    }
    lines
}
