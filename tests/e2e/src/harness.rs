//! Runs cases as tests: one after the other, on one [`World`], which is tidied up at the end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::{Case, Verdict, World};

/// A case and its name.
pub type Named = (&'static str, fn(&World) -> Case);

/// The target folder that this program lies in: `target/release/deps/program`.
pub fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// Runs all groups of cases as the command line chooses them: the whole main function of a test program.
pub fn run(groups: &[(&str, &[Named])]) -> ExitCode {
    if let Some(code) = crate::limits::become_limited() {
        return code;
    }
    run_in(groups, |target| World::new(target).map_err(Verdict::Wrong), World::clean_up)
}

/// Groups of named cases that share a `W`.
pub type Groups<'a, W> = [(&'a str, &'a [(&'static str, fn(&W) -> Case)])];

/// As [`run`], with a world of the caller's own. Without one all cases are skipped ([`Verdict::Skipped`]) or none is tried.
pub fn run_in<W: Send + Sync + 'static>(
    groups: &Groups<'_, W>,
    make: impl FnOnce(&Path) -> Result<W, Verdict>,
    tidy_up: impl FnOnce(&W),
) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The cases share two cores and some sandboxes.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let world = match (!arguments.list).then(|| make(&target())).transpose() {
        Ok(world) => Arc::new(world.ok_or_else(String::new)),
        Err(Verdict::Skipped(why)) => Arc::new(Err(why)),
        Err(Verdict::Wrong(why)) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    let trials = groups.iter().flat_map(|(group, cases)| {
        let world = world.clone();
        cases.iter().map(move |(name, case)| {
            let (world, case) = (world.clone(), *case);
            Trial::ignorable_test(format!("{group}::{name}"), move || {
                let outcome = match world.as_ref() {
                    Ok(world) => case(world),
                    Err(why) => Err(Verdict::Skipped(why.clone())),
                };
                match outcome {
                    Ok(()) => Ok(Completion::Completed),
                    Err(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
                    Err(Verdict::Wrong(what)) => Err(what.into()),
                }
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Ok(world) = world.as_ref() {
        tidy_up(world);
    }
    conclusion.exit_code()
}
