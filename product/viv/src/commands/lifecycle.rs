//! `viv start`, `viv stop` and `viv rm`.

use std::io::{BufRead, Write};

use sandbox::client;
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::places::Places;
use sandbox::spec::State;

use crate::cli::{RmOptions, StartOptions, StopOptions};
use crate::commands::{hold_known, may_interact, say, size};
use crate::failure::{Failure, OURS};

/// All sandboxes that are meant, each once; a name that is no sandbox's does not keep the others. Gives the exit code so far.
fn find_all(names: &[String], places: &Places) -> Result<(Vec<Sandbox>, u8), Failure> {
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
fn each(
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
        hold_known(&places, &sandbox, interactive)?;
        say(&format!("{}\n", sandbox.spec.name))?;
        Ok(())
    }))
}

/// The verb `stop`.
pub(crate) fn stop(options: &StopOptions) -> Result<u8, Failure> {
    Ok(each(find_all(&options.names, &Places::from_env()?)?, |sandbox| {
        client::stop(&sandbox)?;
        say(&format!("{}\n", sandbox.spec.name))?;
        Ok(())
    }))
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
        let name = sandbox.spec.name.clone();
        client::stop(&sandbox)?;
        sandbox.remove()?;
        say(&format!("{name}\n"))?;
        Ok(())
    }))
}

fn agreed(sandboxes: &[Sandbox]) -> Result<bool, Failure> {
    for sandbox in sandboxes {
        let running = if sandbox.state() == State::Stopped { "" } else { ", which is running," };
        eprintln!(
            "{}{running} with its disk of {} will be deleted.",
            sandbox.spec.name,
            size(sandbox.disk_use())
        );
    }
    eprint!("The workspace stays as it is. Go on? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(format!("no answer: {error}")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
