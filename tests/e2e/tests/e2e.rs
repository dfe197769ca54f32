//! Drives the real `viv` as a user does. `cargo test -p e2e`; a name's part as argument chooses cases.
//!
//! One point of the promise each: set-up and sessions, Docker and tools, the workspace, several sandboxes. What cannot be
//! tried on this machine is skipped with its reason, and counted.

mod docker;
mod many;
mod sessions;
mod workspace;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use e2e::{Case, Verdict, World};
use libtest_mimic::{Arguments, Completion, Trial};

/// A case and its name.
pub(crate) type Named = (&'static str, fn(&World) -> Case);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let groups = [
        ("sessions", sessions::CASES),
        ("docker", docker::CASES),
        ("workspace", workspace::CASES),
        ("many", many::CASES),
    ];
    // The cases share two cores and some sandboxes.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("/var/tmp"));
    let world = if arguments.list { None } else { Some(World::new(target)) };
    let world = match world.transpose() {
        Ok(world) => Arc::new(world),
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    let trials = groups.into_iter().flat_map(|(group, cases)| {
        let world = world.clone();
        cases.iter().map(move |(name, case)| {
            let (world, case) = (world.clone(), *case);
            Trial::ignorable_test(format!("{group}::{name}"), move || {
                let Some(world) = world.as_ref() else { return Ok(Completion::Completed) };
                match case(world) {
                    Ok(()) => Ok(Completion::Completed),
                    Err(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
                    Err(Verdict::Wrong(what)) => Err(what.into()),
                }
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(world) = world.as_ref() {
        world.clean_up();
    }
    conclusion.exit_code()
}
