//! Runs cases as tests: one after the other, on one [`World`], which is tidied up at the end.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::{Case, Verdict, World};

/// A case and its name.
pub type Named = (&'static str, fn(&World) -> Case);

/// The target folder that this program lies in: `target/release/deps/program`.
fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// Runs all groups of cases as the command line chooses them: the whole main function of a test program.
pub fn run(groups: &[(&str, &[Named])]) -> ExitCode {
    if let Some(code) = crate::limits::become_limited() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // The cases share two cores and some sandboxes.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let world = if arguments.list { None } else { Some(World::new(&target())) };
    let world = match world.transpose() {
        Ok(world) => Arc::new(world),
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    let trials = groups.iter().flat_map(|(group, cases)| {
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
