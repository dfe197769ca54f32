//! The host's power fails: a guest keeps its journal on a disk that remembers every request, and the disk is looked at as it may be
//! at many moments of that. What the guest knew to be durable must be there, in a whole file system.
//!
//! The vmm's parts run in this process: the device, the disk and its file are the product's, the machine's engine is `soft`.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_proto::abi::serial;
use e2e::{Case, Dice, Verdict, ensure};
use faults::{Ledger, PROGRAM, Recording};
use libtest_mimic::{Arguments, Completion, Trial};
use soft_jit::Tuning;
use software_cpu::Files;

/// Bytes of the disk, records that are written, mebibytes of ext4's journal: it is gone round a few times.
const DISK: usize = 64 << 20;
const RECORDS: u64 = 800;
const JOURNAL: u32 = 4;

/// Disks that are looked at.
fn cuts() -> u64 {
    if e2e::long_cases() { 300 } else { 60 }
}

const CASE: &str = "what_was_durable_is_there_after_a_loss_of_power";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let trial = Trial::ignorable_test(format!("power::{CASE}"), || match lost() {
        Ok(()) => Ok(Completion::Completed),
        Err(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
        Err(Verdict::Wrong(what)) => Err(what.into()),
    });
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

fn script() -> String {
    format!(
        r#"set -e
disk=/dev/disk/by-id/virtio-{}
mke2fs -q -F -t ext4 -m 0 -J size={JOURNAL} -E lazy_itable_init=0 "$disk"
mkdir -p /run/kept
mount -t ext4 -o noatime,discard,errors=remount-ro "$disk" /run/kept
cat > /run/journal.py <<'END'
{PROGRAM}
END
JOURNAL=/run/kept/journal python3 /run/journal.py write 1 {RECORDS}
"#,
        serial::OUTPUT
    )
}

/// Runs the guest; gives all that it asked and said.
fn record(files: &Files) -> Result<Ledger, Verdict> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let handle = std::fs::File::open(folder.path())?;
    disk::create(handle.as_fd(), DISK as u64)?;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let recording = Recording::new(disk::open(handle.as_fd())?, ledger.clone());
    let heard = ledger.clone();
    let ear = move |bytes: &[u8]| {
        if let Ok(mut ledger) = heard.lock() {
            ledger.hear(bytes);
        }
    };
    let limit = Duration::from_secs(1200);
    let report = software_cpu::run_with(
        files,
        Tuning::default(),
        2,
        &script(),
        limit,
        Some(Box::new(recording)),
        Arc::new(ear),
    );
    let report = report.map_err(|error| Verdict::Wrong(error.to_string()))?;
    ensure(report.code() == Some(0), format!("the guest's script: {}", report.console))?;
    let mut ledger = ledger.lock().map_err(|_| Verdict::Wrong("a device has panicked".into()))?;
    Ok(std::mem::take(&mut *ledger))
}

fn tool(program: &str, arguments: &[&str], image: &Path) -> Result<(i32, String), Verdict> {
    let said = Command::new(program)
        .args(arguments)
        .arg(image)
        .output()
        .map_err(|error| Verdict::Skipped(format!("needs {program} on the host: {error}")))?;
    let words = [said.stdout, said.stderr].concat();
    Ok((said.status.code().unwrap_or(-1), String::from_utf8_lossy(&words).into_owned()))
}

/// The file system must be whole once its journal is replayed, and have all records up to `last`.
fn look(image: &[u8], last: u64) -> Case {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let path = folder.path().join("image");
    std::fs::write(&path, image)?;
    // 1: the journal was replayed, and files that were being deleted are gone, as at each mount.
    let (code, words) = tool("e2fsck", &["-f", "-p"], &path)?;
    ensure(code == 0 || code == 1, format!("e2fsck -p ends with {code}: {words}"))?;
    let (code, words) = tool("e2fsck", &["-f", "-n"], &path)?;
    ensure(code == 0, format!("e2fsck -n ends with {code}: {words}"))?;
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy)?;
    tool("debugfs", &["-R", &format!("rdump / {}", copy.display())], &path)?;
    let program = folder.path().join("journal.py");
    std::fs::write(&program, PROGRAM)?;
    let said = Command::new("python3")
        .arg(&program)
        .args(["check", &last.to_string()])
        .env("JOURNAL", copy.join("journal"))
        .output()
        .map_err(|error| Verdict::Skipped(format!("needs python3 on the host: {error}")))?;
    let words = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&said.stderr);
    ensure(words == "whole", format!("of {last} durable records these are lost: {words} {errors}"))
}

fn lost() -> Case {
    let files = Files::find().map_err(Verdict::Skipped)?;
    let mut dice = Dice::new();
    let ledger = record(&files)?;
    let end = ledger.len();
    ensure(ledger.said(end) == RECORDS, format!("the guest has said {} records", ledger.said(end)))?;
    ensure(ledger.flushes() as u64 > RECORDS, format!("only {} flushes", ledger.flushes()))?;
    ensure(ledger.discards() > 0, "nothing was discarded")?;
    // Whether this host's tools know such a file system at all.
    let (whole, _) = ledger.cut(end, DISK, &mut dice);
    look(&whole, RECORDS)?;
    // A look that sees nothing lost where something is would be worth nothing.
    let first = ledger.first_record().unwrap_or(end);
    let half = first + (end - first) / 2;
    let (early, _) = ledger.cut(half, DISK, &mut dice);
    ensure(
        matches!(look(&early, RECORDS), Err(Verdict::Wrong(what)) if what.contains("lost")),
        "half is taken for all",
    )?;
    let mut open = 0;
    for number in 1..=cuts() {
        let moment = first + 1 + usize::try_from(dice.below((end - first) as u64)).unwrap_or(0);
        let moment = if number.is_multiple_of(2) { ledger.before_flush(moment) } else { moment };
        let (image, requests) = ledger.cut(moment, DISK, &mut dice);
        open += requests;
        look(&image, ledger.said(moment)).map_err(|verdict| match verdict {
            Verdict::Wrong(what) => {
                Verdict::Wrong(format!("cut {number}, at event {moment} of {end}: {what}"))
            }
            skipped => skipped,
        })?;
    }
    println!(
        "{} flushes, {} discards, {open} requests open in {} cuts",
        ledger.flushes(),
        ledger.discards(),
        cuts()
    );
    ensure(open > 0, "no cut had a request that was not durable")
}
