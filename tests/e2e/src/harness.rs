//! Runs cases as tests: one after the other, on one [`World`], which is tidied up at the end; or in lanes beside each other, each
//! of which has a world of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

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
            let name = format!("{group}::{name}");
            Trial::ignorable_test(name.clone(), move || {
                reported(match world.as_ref() {
                    Ok(world) => timed(name, || case(world)),
                    Err(why) => Err(Verdict::Skipped(why.clone())),
                })
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Ok(world) = world.as_ref() {
        tidy_up(world);
    }
    say_longest();
    conclusion.exit_code()
}

type Reported = Result<Completion, Failed>;

fn reported(outcome: Case) -> Reported {
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
        Err(Verdict::Wrong(what)) => Err(what.into()),
    }
}

/// As [`run`], in lanes: a guest leaves a processor idle for much of its time. The groups of `first` are done before the lanes
/// begin. A lane's cases follow each other; they are reported in the order of the groups, as soon as those before them are.
pub fn run_in_lanes(first: &Groups<'_, World>, lanes: &[&Groups<'_, World>]) -> ExitCode {
    if let Some(code) = crate::limits::become_limited() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // Those that wait for the lanes.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    let mut chosen = |groups: &Groups<'_, World>| {
        let mut lane = Lane::new();
        for (group, cases) in groups {
            for (name, case) in *cases {
                let (tell, told) = channel();
                let trial = Trial::ignorable_test(format!("{group}::{name}"), move || {
                    told.recv().unwrap_or_else(|_| Err("its lane has ended".into()))
                });
                if !arguments.list && !arguments.is_filtered_out(&trial) {
                    lane.push((format!("{group}::{name}"), *case, tell));
                }
                trials.push(trial);
            }
        }
        lane
    };
    let first = chosen(first);
    let lanes: Vec<Lane> = lanes.iter().map(|lane| chosen(lane)).collect();
    let worlds = if arguments.list { Ok(Vec::new()) } else { worlds(lanes.len()) };
    let worlds = match worlds {
        Ok(worlds) => worlds,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::FAILURE;
        }
    };
    let at_work = worlds.clone();
    let foreman = thread::spawn(move || {
        if let Some(world) = at_work.first() {
            follow(world, first);
        }
        thread::scope(|scope| {
            for (world, lane) in at_work.iter().zip(lanes) {
                scope.spawn(|| follow(world, lane));
            }
        });
    });
    let conclusion = libtest_mimic::run(&arguments, trials);
    let _ = foreman.join();
    worlds.iter().for_each(|world| world.clean_up());
    say_longest();
    conclusion.exit_code()
}

/// How long each case took.
static TOOK: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());
/// How many of them are named at the end.
const LONGEST: usize = 20;

fn timed<T>(name: String, case: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let outcome = case();
    TOOK.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), name));
    outcome
}

/// Who makes the suite shorter begins with these.
fn say_longest() {
    let mut took = std::mem::take(&mut *TOOK.lock().unwrap_or_else(PoisonError::into_inner));
    took.sort_by(|one, other| other.cmp(one));
    let named = took.iter().take(LONGEST).map(|(time, name)| format!("{} s {name}", time.as_secs()));
    if !took.is_empty() {
        println!("longest: {}", named.collect::<Vec<_>>().join(", "));
    }
}

/// Cases by name, and who waits for what each comes to.
type Lane = Vec<(String, fn(&World) -> Case, Sender<Reported>)>;

fn worlds(count: usize) -> Result<Vec<Arc<World>>, String> {
    let first = World::new(&target())?;
    let others =
        (1..count).map(|_| World::with(first.program().to_owned())).collect::<Result<Vec<_>, _>>()?;
    Ok(std::iter::once(first).chain(others).map(Arc::new).collect())
}

fn follow(world: &World, lane: Lane) {
    for (name, case, tell) in lane {
        let outcome = timed(name, || catch_unwind(AssertUnwindSafe(|| case(world))));
        // An error: nobody waits any more.
        let _ = tell.send(outcome.map_or_else(|why| Err(words(why.as_ref()).into()), reported));
    }
}

/// What a panic said.
fn words(why: &(dyn Any + Send)) -> String {
    let text = why.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| why.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}
