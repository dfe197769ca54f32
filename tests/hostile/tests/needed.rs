//! Every line of the tables of system calls is needed: what the vmm and the shim of a real sandbox do is recorded, and a
//! line that was not seen must say why it is there all the same. The other direction needs no test: what is missing kills
//! the process.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use confine::{Call, Role, Shown, When};
use e2e::{LONG, Verdict, World, long_cases};
use hostile::recorder::{Made, asked_for, letter};
use hostile::workload::used;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    if let Some(code) = asked_for() {
        return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX));
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let trials = vec![
        Trial::ignorable_test("every_call_is_needed::soft", || case("soft")),
        Trial::ignorable_test("every_call_is_needed::kvm", || {
            if long_cases() { case("kvm") } else { Ok(Completion::ignored_with(LONG)) }
        }),
        Trial::test("a_line_that_nobody_needs_is_found", finds_superfluous),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn case(engine: &str) -> Result<Completion, Failed> {
    let images = e2e::cache_home().join("vivarium/images");
    if !std::fs::read_dir(&images).is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(Completion::ignored_with(format!("there is no image in {}", images.display())));
    }
    if engine == "kvm" && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Completion::ignored_with("/dev/kvm cannot be opened"));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("/var/tmp"));
    let world = World::new(target)?;
    let outcome = used(&world, &["--engine", engine]);
    world.clean_up();
    let made = match outcome {
        Ok(made) => made,
        Err(Verdict::Skipped(why)) => return Ok(Completion::ignored_with(why)),
        Err(Verdict::Wrong(what)) => return Err(what.into()),
    };
    let roles = [Role::Vmm, Role::Shim];
    let superfluous: Vec<String> = roles
        .into_iter()
        .flat_map(|role| superfluous(confine::table(role), letter(role), engine, &made))
        .collect();
    let missing: Vec<String> =
        roles.into_iter().flat_map(|role| missing(confine::table(role), letter(role), &made)).collect();
    if superfluous.is_empty() && missing.is_empty() {
        return Ok(Completion::Completed);
    }
    let (superfluous, missing) = (superfluous.join(", "), missing.join(", "));
    Err(format!("allowed, but never seen: {superfluous}\nmade, but not allowed: {missing}").into())
}

/// What was made and is not in the table: it has killed its process, and this says by which number.
fn missing(table: &[Call], role: char, made: &BTreeSet<Made>) -> Vec<String> {
    let allows = |call: &Call, made: &Made| {
        let value = match call.when {
            When::OneOf(_, values) => values.contains(&made.value),
            _ => true,
        };
        call.number == made.number && value
    };
    made.iter()
        .filter(|made| made.role == role && !table.iter().any(|call| allows(call, made)))
        .map(|made| format!("{role}:{}({:#x})", made.number, made.value))
        .collect()
}

/// The lines of a table that say they would be seen and were not.
fn superfluous(table: &[Call], role: char, engine: &str, made: &BTreeSet<Made>) -> Vec<String> {
    let mut unseen = Vec::new();
    for call in table {
        let expected = match call.shown {
            Shown::Recorded => true,
            Shown::RecordedOn(only) => only == engine,
            Shown::Rare(_) => false,
        };
        let values = match call.when {
            When::OneOf(_, values) => values,
            _ => &[0],
        };
        let missing = |value: &&u64| !made.contains(&Made { role, number: call.number, value: **value });
        if expected {
            unseen.extend(
                values.iter().filter(missing).map(|value| format!("{role}:{}({value:#x})", call.name())),
            );
        }
    }
    unseen
}

/// The check itself: with nothing recorded everything that should have been is missed, and one value of a call does not
/// stand for another.
fn finds_superfluous() -> Result<(), Failed> {
    for role in [Role::Vmm, Role::Shim] {
        let table = confine::table(role);
        let recorded = table.iter().filter(|call| call.shown == Shown::Recorded).count();
        let missed = superfluous(table, letter(role), "soft", &BTreeSet::new());
        if recorded == 0 || missed.len() < recorded {
            return Err(format!("{} of {recorded} lines were missed", missed.len()).into());
        }
        let first = table.iter().find(|call| matches!(call.when, When::OneOf(_, [_, _, ..])));
        let Some((call, When::OneOf(_, [value, ..]))) = first.map(|call| (call, call.when)) else { continue };
        let one = BTreeSet::from([Made { role: letter(role), number: call.number, value: *value }]);
        let name = format!("{}:{}(", letter(role), call.name());
        if call.shown == Shown::Recorded
            && !superfluous(table, letter(role), "soft", &one).iter().any(|line| line.starts_with(&name))
        {
            return Err(format!("{} counts as needed by one of its values", call.name()).into());
        }
    }
    Ok(())
}
