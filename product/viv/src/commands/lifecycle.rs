//! `viv start`, `viv stop` and `viv rm`.

use std::io::{BufRead, Write};

use sandbox::client::{self, Stopped};
use sandbox::control::Attention;
use sandbox::escape::{LONGEST, escaped};
use sandbox::folder::{Folder, Sandbox, Sandboxes};
use sandbox::places::Places;

use crate::cli::{RmOptions, StartOptions, StopOptions};
use crate::commands::{hold_known, may_interact, say, size};
use crate::failure::{Failure, OURS};
use crate::keep;

/// How often a sandbox is stopped that somebody else starts again and again.
const MOST_ROUNDS: usize = 5;

/// All sandboxes that are meant, each once; a name that is no sandbox's does not keep the others. Gives the exit code so far.
pub(crate) fn find_all(names: &[String], places: &Places) -> Result<(Vec<Sandbox>, u8), Failure> {
    let sandboxes = Sandboxes::open(places)?;
    Ok(find_each(names, |name| sandboxes.find(name)))
}

fn find_each<T: AsRef<Folder>>(names: &[String], find: impl Fn(&str) -> sandbox::Result<T>) -> (Vec<T>, u8) {
    let (mut found, mut code): (Vec<T>, u8) = (Vec::new(), 0);
    for name in names {
        match find(name) {
            Ok(sandbox) if found.iter().any(|known| known.as_ref() == sandbox.as_ref()) => {}
            Ok(sandbox) => found.push(sandbox),
            Err(error) => {
                let failure = Failure::from(error);
                failure.print();
                code = failure.code;
            }
        }
    }
    (found, code)
}

/// Does it to each, says which failed, and goes on with the others.
pub(crate) fn each<T>(
    (sandboxes, mut code): (Vec<T>, u8),
    mut action: impl FnMut(T) -> Result<(), Failure>,
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
        let held = hold_known(&places, &sandbox, Attention::default(), interactive)?;
        if options.detach {
            held.keep()?;
        }
        say(&format!("{}\n", sandbox.spec.name))?;
        Ok(())
    }))
}

/// The verb `stop`. What the sandboxes are need not be known.
pub(crate) fn stop(options: &StopOptions) -> Result<u8, Failure> {
    let sandboxes = Sandboxes::open(&Places::from_env()?)?;
    Ok(each(find_each(&options.names, |name| sandboxes.find_folder(name)), |sandbox| {
        keep_tokens(&sandbox);
        let stopped = client::stop(&sandbox, false)?;
        say(&format!("{}\n", sandbox.name()))?;
        match stopped {
            Stopped::Otherwise(why) => Err(not_in_order(&sandbox, &why)),
            Stopped::Already | Stopped::InOrder => Ok(()),
        }
    }))
}

/// Tokens of logins that no session was there to keep would be lost.
fn keep_tokens(sandbox: &Folder) {
    let tell = |why: &String| eprintln!("viv: {}", escaped(why, LONGEST));
    let kept = client::keep_grants(sandbox, |text| keep::keep(&sandbox.id(), text).inspect_err(tell).is_ok());
    if let Err(error) = kept {
        tracing::info!(%error, "Whether there are tokens to keep is not known");
    }
}

/// It is stopped, as was wanted, but its disk is not as it was to be left.
fn not_in_order(sandbox: &Folder, why: &str) -> Failure {
    let name = sandbox.name();
    Failure::new(format!("{name} did not end in order: {}", escaped(why, LONGEST))).hint(format!(
        "its disk is as after a power cut; the next start puts that right, viv check {name} looks at it"
    ))
}

/// The verb `rm`. What the sandboxes are need not be known; without a question nothing is guessed.
pub(crate) fn remove(options: &RmOptions, no_input: bool) -> Result<u8, Failure> {
    let all = Sandboxes::open(&Places::from_env()?)?;
    let (sandboxes, code) = find_each(&options.names, |name| {
        if options.force { all.find_folder_in_full(name) } else { all.find_folder(name) }
    });
    if sandboxes.is_empty() {
        return Ok(code);
    }
    if !options.force {
        if !may_interact(no_input) {
            let names: Vec<&str> = sandboxes.iter().map(Folder::name).collect();
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
        crate::commands::secret::forget(&sandbox.id());
        say(&format!("{}\n", sandbox.name()))?;
        Ok(())
    }))
}

/// Somebody else may start it between its stop and its deletion, or delete it first.
fn stop_and_delete(sandbox: &Folder) -> Result<(), Failure> {
    for _ in 0..MOST_ROUNDS {
        client::stop(sandbox, true)?;
        match sandbox.remove() {
            Err(sandbox::Error::Running { .. }) => {}
            Err(sandbox::Error::UnknownSandbox { .. }) => return Ok(()),
            other => return Ok(other?),
        }
    }
    Err(sandbox::Error::Running { name: sandbox.name().to_owned() }.into())
}

fn agreed(sandboxes: &[Folder]) -> Result<bool, Failure> {
    for sandbox in sandboxes {
        let running = if sandbox.state().is_over() { "" } else { ", which is running," };
        eprintln!(
            "{}{running} with its disk of {} will be deleted.",
            sandbox.name(),
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
