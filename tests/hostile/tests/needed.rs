//! Every line of the tables of system calls is needed: what the vmm and the shim of a real sandbox do is recorded, and a
//! line that was not seen must say why it is there all the same. The other direction needs no test: what is missing kills
//! the process.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};

use confine::{Call, Role, Shown, When};
use e2e::{LONG, Verdict, World, long_cases};
use hostile::recorder::{FLAG, FLAG_WITHOUT_VDSO, Made, Recorded, UNTRACEABLE, asked_for, letter, read};
use hostile::workload::used;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    if let Some(code) = asked_for() {
        return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX));
    }
    // What the recorder takes for a vmm by its first argument.
    if std::env::args().skip(1).eq(LOOKER) {
        return look_at_the_clock();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let trials = vec![
        Trial::ignorable_test("every_call_is_needed::soft", || case("soft")),
        Trial::ignorable_test("every_call_is_needed::kvm", || {
            if long_cases() { case("kvm") } else { Ok(Completion::ignored_with(LONG)) }
        }),
        Trial::ignorable_test("a_clock_without_a_vdso_is_a_call", clock_without_vdso),
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
    let recorded = match outcome {
        Ok(recorded) => recorded,
        Err(Verdict::Skipped(why)) => return Ok(Completion::ignored_with(why)),
        Err(Verdict::Wrong(what)) => return Err(what.into()),
    };
    let roles = [Role::Vmm, Role::Shim];
    let superfluous: Vec<String> = roles
        .into_iter()
        .flat_map(|role| superfluous(confine::table(role), letter(role), engine, &recorded))
        .collect();
    let missing: Vec<String> = roles
        .into_iter()
        .flat_map(|role| missing(confine::table(role), letter(role), &recorded.made))
        .collect();
    if superfluous.is_empty() && missing.is_empty() {
        return Ok(Completion::Completed);
    }
    let (superfluous, missing) = (superfluous.join(", "), missing.join(", "));
    Err(format!("allowed, but never served: {superfluous}\nmade, but not allowed: {missing}").into())
}

/// The arguments of a process that confines itself as a vmm and looks at the clock.
const LOOKER: [&str; 2] = ["vmm", "looks-at-the-clock"];

fn look_at_the_clock() -> ExitCode {
    if confine::confine(Role::Vmm, &confine::Grants::default()).is_err() {
        return ExitCode::FAILURE;
    }
    std::hint::black_box(std::time::Instant::now());
    ExitCode::SUCCESS
}

/// The standard library's clock is a system call where the vDSO has none. (Where this host's own has none, it is one without that, too.)
fn clock_without_vdso() -> Result<Completion, Failed> {
    let folder = tempfile::tempdir()?;
    let own = std::env::current_exe()?;
    let mut seen = Vec::new();
    for flag in [FLAG, FLAG_WITHOUT_VDSO] {
        let out = folder.path().join(flag);
        let status = Command::new(&own).arg(flag).arg(&out).arg(&own).args(LOOKER).status()?;
        if status.code() == Some(UNTRACEABLE) {
            return Ok(Completion::ignored_with("processes cannot be traced here"));
        }
        if !status.success() {
            return Err(format!("with {flag} it ended with {status}").into());
        }
        let table = confine::table(Role::Vmm);
        let clock = table.iter().find(|call| call.name() == "clock_gettime").map(|call| call.number);
        let recorded = read(&out)?;
        if recorded.made.is_empty() {
            return Err(format!("nothing was recorded with {flag}").into());
        }
        seen.push(recorded.served.iter().any(|made| Some(made.number) == clock));
    }
    match seen[..] {
        [_, true] => Ok(Completion::Completed),
        _ => Err(format!("clock_gettime was made with and without a vDSO: {seen:?}").into()),
    }
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

/// The lines of a table that say they would be seen and were not. What was always refused is not needed; a line that refuses is
/// needed where the call is made.
fn superfluous(table: &[Call], role: char, engine: &str, recorded: &Recorded) -> Vec<String> {
    let mut unseen = Vec::new();
    for call in table {
        let expected = match call.shown {
            Shown::Recorded => true,
            Shown::RecordedOn(only) => only == engine,
            Shown::Case(..) | Shown::Argued(_) => false,
        };
        let values = match call.when {
            When::OneOf(_, values) => values,
            _ => &[0],
        };
        let seen = if matches!(call.when, When::Refused) { &recorded.made } else { &recorded.served };
        let missing = |value: &&u64| !seen.contains(&Made { role, number: call.number, value: **value });
        if expected {
            unseen.extend(
                values.iter().filter(missing).map(|value| format!("{role}:{}({value:#x})", call.name())),
            );
        }
    }
    unseen
}

/// The check itself: with nothing recorded everything that should have been is missed, one value of a call does not stand for
/// another, and a call that was refused whenever it was made counts for nothing.
fn finds_superfluous() -> Result<(), Failed> {
    for role in [Role::Vmm, Role::Shim] {
        let table = confine::table(role);
        let lines = table.iter().filter(|call| call.shown == Shown::Recorded).count();
        let missed = superfluous(table, letter(role), "soft", &Recorded::default());
        if lines == 0 || missed.len() < lines {
            return Err(format!("{} of {lines} lines were missed", missed.len()).into());
        }
        for call in table.iter().filter(|call| call.shown == Shown::Recorded) {
            counts_rightly(table, role, call)?;
        }
    }
    Ok(())
}

/// One line's call, seen with its first value only.
fn counts_rightly(table: &[Call], role: Role, call: &Call) -> Result<(), Failed> {
    let values = match call.when {
        When::OneOf(_, values) => values,
        _ => &[0],
    };
    let name = format!("{}:{}(", letter(role), call.name());
    let counted = |recorded: &Recorded| {
        let missed = superfluous(table, letter(role), "soft", recorded);
        values.len() - missed.iter().filter(|line| line.starts_with(&name)).count()
    };
    let first = BTreeSet::from([Made { role: letter(role), number: call.number, value: values[0] }]);
    let refused = Recorded { made: first.clone(), served: BTreeSet::new() };
    let served = Recorded { made: first.clone(), served: first };
    // A line that refuses is needed by what is only made.
    let by_refusals = usize::from(matches!(call.when, When::Refused));
    if table.iter().filter(|other| other.number == call.number).count() == 1
        && (counted(&refused), counted(&served)) != (by_refusals, 1)
    {
        return Err(format!("{} is counted wrongly", call.name()).into());
    }
    Ok(())
}
