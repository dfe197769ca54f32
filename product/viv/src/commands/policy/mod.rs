//! `viv policy`: what sandboxes may reach, and what they did.

mod check;
mod edit;
mod kits;
mod log;
mod show;

use policy::{PolicySet, Rule, SyntaxError};
use sandbox::client;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::network::policy_files;
use sandbox::places::Places;

use crate::cli::PolicyCommand;
use crate::failure::Failure;

pub(crate) use log::observed_since;

/// The word that sbx wants after `allow`, `deny`, `rm` and `check`.
const NETWORK: &str = "network";

/// The verb.
pub(crate) fn run(command: &PolicyCommand, no_input: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    match command {
        PolicyCommand::Init(options) => edit::init(&places, options),
        PolicyCommand::Allow(options) => edit::allow(&places, options),
        PolicyCommand::Deny(options) => edit::deny(&places, options),
        PolicyCommand::Rm(options) => edit::remove(&places, options),
        PolicyCommand::Ls(options) => show::list(&places, options),
        PolicyCommand::Check(options) => check::run(&places, options),
        PolicyCommand::Log(options) => log::run(&places, options),
        PolicyCommand::Approve(options) => kits::approve(&places, options),
        PolicyCommand::Inspect(options) => show::inspect(&places, options),
        PolicyCommand::Reset(options) => edit::reset(&places, options, no_input),
    }
}

/// The sandbox that is meant, if one is.
fn find(places: &Places, name: Option<&String>) -> Result<Option<Sandbox>, Failure> {
    name.map(|name| Ok(Sandboxes::open(places)?.find(name)?)).transpose()
}

/// All that is said about a sandbox, or about all of them.
fn set(places: &Places, sandbox: Option<&Sandbox>) -> Result<PolicySet, Failure> {
    let Some(sandbox) = sandbox else { return Ok(policy_files::set_of_all(places)?) };
    let files = policy_files::set(places, sandbox, &sandbox::network::own_addresses())?;
    // Of one that does not answer the files alone are shown.
    Ok(PolicySet { once: once(Some(sandbox)).unwrap_or_default(), ..files })
}

/// What a sandbox was allowed until it stops. Only one that runs knows.
fn once(sandbox: Option<&Sandbox>) -> Result<Vec<Rule>, Failure> {
    let Some(sandbox) = sandbox.filter(|sandbox| !sandbox.state().is_over()) else { return Ok(Vec::new()) };
    Ok(client::network(sandbox)?.map(|network| network.once).unwrap_or_default())
}

/// Takes back what of that goes by these keys.
fn forget_once(sandbox: Option<&Sandbox>, keys: Vec<String>) -> Result<(), Failure> {
    match sandbox {
        Some(sandbox) if !keys.is_empty() => Ok(client::forget_once(sandbox, keys)?),
        _ => Ok(()),
    }
}

/// The resources without sbx's word before them.
fn without_word(given: &[String]) -> &[String] {
    match given {
        [first, rest @ ..] if first == NETWORK && !rest.is_empty() => rest,
        all => all,
    }
}

/// A mistake in what the user wrote.
fn mistake(error: &SyntaxError) -> Failure {
    Failure::new(escaped(&error.to_string(), LONGEST))
        .hint("HOST[:PORTS], *.HOST, **.HOST, NETWORK[:PORTS] such as 10.0.0.0/8:5432, or localhost:PORT")
}

/// The name of these that was most likely meant.
fn nearest(given: &str, names: &[&str]) -> Option<String> {
    sandbox::naming::nearest(given, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_network_may_be_there() {
        let all = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(without_word(&all(&["network", "a.example"])), ["a.example"]);
        assert_eq!(without_word(&all(&["a.example", "b.example"])), ["a.example", "b.example"]);
        // A host of that name.
        assert_eq!(without_word(&all(&["network"])), ["network"]);
    }
}
