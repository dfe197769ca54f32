//! `viv start`, `viv stop` and `viv rm`.

use std::io::{BufRead, Write};

use sandbox::client::{self, Stopped};
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::places::Places;

use crate::cli::{RmOptions, StartOptions, StopOptions};
use crate::commands::{hold_known, may_interact, say, size};
use crate::failure::{Failure, OURS};

/// How often a sandbox is stopped that somebody else starts again and again.
const MOST_ROUNDS: usize = 5;

/// All sandboxes that are meant, each once; a name that is no sandbox's does not keep the others. Gives the exit code so far.
pub(crate) fn find_all(names: &[String], places: &Places) -> Result<(Vec<Sandbox>, u8), Failure> {
    let sandboxes = Sandboxes::open(places)?;
    let (mut found, mut code): (Vec<Sandbox>, u8) = (Vec::new(), 0);
    for name in names {
        match sandboxes.find(name) {
            Ok(sandbox) if found.iter().any(|known| known.spec.id == sandbox.spec.id) => {}
            Ok(sandbox) => found.push(sandbox),
            Err(error) => {
                let failure = Failure::from(error);
                failure.print();
                code = failure.code;
            }
        }
    }
    Ok((found, code))
}

/// Does it to each, says which failed, and goes on with the others.
pub(crate) fn each(
    (sandboxes, mut code): (Vec<Sandbox>, u8),
    mut action: impl FnMut(Sandbox) -> Result<(), Failure>,
) -> u8 {
    for sandbox in sandboxes {
        if let Err(failure) = action(sandbox) {
            failure.print();
            code = failure.code;
        }
    }
    code
}

/// The verb `start`.
pub(crate) fn start(options: &StartOptions, no_input: bool) -> Result<u8, Failure> {
    let (interactive, places) = (may_interact(no_input), Places::from_env()?);
    Ok(each(find_all(&options.names, &places)?, |sandbox| {
        let held = hold_known(&places, &sandbox, interactive)?;
        if options.detach {
            held.keep()?;
        }
        say(&format!("{}\n", sandbox.spec.name))?;
        Ok(())
    }))
}

/// The verb `stop`.
pub(crate) fn stop(options: &StopOptions) -> Result<u8, Failure> {
    Ok(each(find_all(&options.names, &Places::from_env()?)?, |sandbox| {
        let stopped = client::stop(&sandbox, false)?;
        say(&format!("{}\n", sandbox.spec.name))?;
        match stopped {
            Stopped::Otherwise(why) => Err(not_in_order(&sandbox, &why)),
            Stopped::Already | Stopped::InOrder => Ok(()),
        }
    }))
}

/// It is stopped, as was wanted, but its disk is not as it was to be left.
fn not_in_order(sandbox: &Sandbox, why: &str) -> Failure {
    let name = &sandbox.spec.name;
    Failure::new(format!("{name} did not end in order: {}", escaped(why, LONGEST))).hint(format!(
        "its disk is as after a power cut; the next start puts that right, viv check {name} looks at it"
    ))
}

/// The verb `rm`.
pub(crate) fn remove(options: &RmOptions, no_input: bool) -> Result<u8, Failure> {
    let (sandboxes, code) = find_all(&options.names, &Places::from_env()?)?;
    if sandboxes.is_empty() {
        return Ok(code);
    }
    if !options.force {
        if !may_interact(no_input) {
            let names: Vec<&str> = sandboxes.iter().map(|sandbox| sandbox.spec.name.as_str()).collect();
            let names = names.join(" ");
            return Err(Failure::new("viv rm asks before it deletes, and there is nobody to ask")
                .hint(format!("viv rm -f {names}")));
        }
        if !agreed(&sandboxes)? {
            eprintln!("Nothing was deleted.");
            return Ok(OURS);
        }
    }
    Ok(each((sandboxes, code), |sandbox| {
        stop_and_delete(&sandbox)?;
        say(&format!("{}\n", sandbox.spec.name))?;
        Ok(())
    }))
}

/// Somebody else may start it between its stop and its deletion, or delete it first.
fn stop_and_delete(sandbox: &Sandbox) -> Result<(), Failure> {
    for _ in 0..MOST_ROUNDS {
        client::stop(sandbox, true)?;
        match sandbox.clone().remove() {
            Err(sandbox::Error::Running { .. }) => {}
            Err(sandbox::Error::UnknownSandbox { .. }) => return Ok(()),
            other => return Ok(other?),
        }
    }
    Err(sandbox::Error::Running { name: sandbox.spec.name.clone() }.into())
}

fn agreed(sandboxes: &[Sandbox]) -> Result<bool, Failure> {
    for sandbox in sandboxes {
        let running = if sandbox.state().is_over() { "" } else { ", which is running," };
        eprintln!(
            "{}{running} with its disk of {} will be deleted.",
            sandbox.spec.name,
            size(sandbox.disk_use())
        );
    }
    ask("The workspace stays as it is. Go on?")
}

/// Asks a question that is answered with yes or no.
pub(crate) fn ask(question: &str) -> Result<bool, Failure> {
    eprint!("{question} [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(format!("no answer: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
