//! `viv start`, `viv stop` and `viv rm`.

use std::io::{BufRead, Write};

use sandbox::client;
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::places::Places;
use sandbox::spec::State;

use crate::cli::{RmOptions, StartOptions, StopOptions};
use crate::commands::{hold_known, may_interact, size};
use crate::failure::{Failure, OURS};

/// All sandboxes that are meant, each once, before anything is done to one.
fn find_all(names: &[String], places: &Places) -> Result<Vec<Sandbox>, Failure> {
    let sandboxes = Sandboxes::open(places)?;
    let mut found: Vec<Sandbox> = Vec::new();
    for name in names {
        let sandbox = sandboxes.find(name)?;
        if found.iter().all(|known| known.spec.id != sandbox.spec.id) {
            found.push(sandbox);
        }
    }
    Ok(found)
}

/// Does it to each, says which failed, and goes on with the others.
fn each(sandboxes: Vec<Sandbox>, mut action: impl FnMut(Sandbox) -> Result<(), Failure>) -> u8 {
    let mut code = 0;
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
        println!("{}", sandbox.spec.name);
        Ok(())
    }))
}

/// The verb `stop`.
pub(crate) fn stop(options: &StopOptions) -> Result<u8, Failure> {
    Ok(each(find_all(&options.names, &Places::from_env()?)?, |sandbox| {
        client::stop(&sandbox)?;
        println!("{}", sandbox.spec.name);
        Ok(())
    }))
}

/// The verb `rm`.
pub(crate) fn remove(options: &RmOptions, no_input: bool) -> Result<u8, Failure> {
    let sandboxes = find_all(&options.names, &Places::from_env()?)?;
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
    Ok(each(sandboxes, |sandbox| {
        let name = sandbox.spec.name.clone();
        client::stop(&sandbox)?;
        sandbox.remove()?;
        println!("{name}");
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
