//! Debian on the software CPU: with a small code cache, and with each translated block compared with the interpreter.
//! Without an image on this machine every case is skipped, with the reason, and counted.

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use machine::Exit;
use soft_jit::Tuning;
use software_cpu::{Files, Report};

/// A case, its name, and whether it takes long.
type Case = (&'static str, bool, fn(&Files) -> Result<(), Failed>);

const CASES: &[Case] = &[
    ("small_cache::debian_boots", false, small_cache_boots),
    ("small_cache::node_gcc_and_docker_run", true, small_cache_works),
    ("lockstep::one_vcpu_boots", true, |files| lockstep(files, 1)),
    ("lockstep::two_vcpus_boot", true, |files| lockstep(files, 2)),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let files: Arc<LazyLock<Result<Files, String>>> = Arc::new(LazyLock::new(Files::find));
    let trials = CASES.iter().map(|(name, long, case)| {
        let files = files.clone();
        Trial::ignorable_test(*name, move || {
            if *long && !e2e::long_cases() {
                return Ok(Completion::ignored_with(e2e::LONG));
            }
            match files.as_ref().as_ref() {
                Ok(files) => case(files).map(|()| Completion::Completed),
                Err(why) => Ok(Completion::ignored_with(why)),
            }
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs a script in the guest, which must do it without an error and power off.
fn run(files: &Files, words: &str, vcpus: u32, script: &str, minutes: u64) -> Result<Report, Failed> {
    let tuning = Tuning::parse(words).map_err(|word| format!("the word {word} is unknown"))?;
    let limit = Duration::from_secs(60 * minutes);
    let report = software_cpu::run(files, tuning, vcpus, script, limit).map_err(|error| error.to_string())?;
    if report.exit != Exit::PowerOff || report.code() != Some(0) {
        return Err(format!("{:?}, script {:?}:\n{}", report.exit, report.code(), report.console).into());
    }
    Ok(report)
}

fn says(report: &Report, line: &str) -> Result<(), Failed> {
    if report.console.lines().any(|said| said == line) {
        return Ok(());
    }
    Err(format!("the guest did not say {line:?}:\n{}", report.console).into())
}

/// At least this many cache units were evicted.
fn evicted(report: &Report, least: u64) -> Result<(), Failed> {
    let evicted = report.counter("evicted cache units");
    println!("{evicted} cache units evicted");
    if evicted < least { Err(format!("only {evicted} cache units were evicted").into()) } else { Ok(()) }
}

fn small_cache_boots(files: &Files) -> Result<(), Failed> {
    let script = "set -e\npython3 -c 'print(\"python\", sum(range(100000)))'\n";
    let report = run(files, "cache=8M", 2, script, 10)?;
    says(&report, "python 4999950000")?;
    evicted(&report, 16)
}

fn small_cache_works(files: &Files) -> Result<(), Failed> {
    let script = r#"set -e
cd /tmp
node -e 'let s = 0; for (let i = 0; i < 2e6; i++) s += i % 7; console.log("node", s)'
printf '#include <stdio.h>\nint main(void) { printf("gcc %%d\\n", 6 * 7); }\n' > a.c
gcc -O2 -static -o a a.c
./a
dockerd > dockerd.log 2>&1 &
until docker version > /dev/null 2>&1; do sleep 0.2; done
mkdir context
cp a context
printf 'FROM scratch\nCOPY a /a\nCMD ["/a"]\n' > context/Dockerfile
docker build -t built context > build.log 2>&1
echo "docker $(docker run --rm --network none built)"
"#;
    let report = run(files, "cache=8M", 2, script, 60)?;
    for line in ["node 5999995", "gcc 42", "docker gcc 42"] {
        says(&report, line)?;
    }
    evicted(&report, 1000)
}

fn lockstep(files: &Files, vcpus: u32) -> Result<(), Failed> {
    // A difference ends the machine, and so the case.
    let report = run(files, "lockstep,slow-clock", vcpus, "echo vcpus $(nproc)\n", 180)?;
    says(&report, &format!("vcpus {vcpus}"))?;
    let [blocks, instructions, doubtful] =
        ["blocks compared in lock-step", "instructions compared in lock-step", "inconclusive comparisons"]
            .map(|name| report.counter(name));
    println!("{blocks} blocks with {instructions} instructions compared, {doubtful} inconclusive");
    if instructions < 1_000_000_000 || doubtful > blocks / 1000 {
        return Err("too little was compared".into());
    }
    Ok(())
}
