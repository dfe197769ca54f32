//! The sandbox's disk: space that comes back to the host, the offline check, and what a damaged disk says.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use e2e::{Case, Verdict, World, ensure, eventually};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("a_removed_files_space_is_back_on_the_host", discard),
    ("two_removed_gibibytes_are_back_on_the_host", discard_much),
    ("what_a_killed_run_had_freed_is_given_back_by_the_next", trim),
    ("check_looks_at_a_stopped_disk_and_changes_nothing", check),
    ("a_damaged_file_system_is_said_and_left_alone", damaged),
    ("damaged_files_of_a_disk_are_said_and_left_alone", damaged_files),
];

fn layer(world: &World, name: &str) -> Result<PathBuf, Verdict> {
    Ok(world.folder(name)?.join("disk/layer-0.raw"))
}

/// Mebibytes that a file takes on the host.
fn taken(file: &PathBuf) -> u64 {
    std::fs::metadata(file).map_or(0, |meta| meta.blocks() / 2048)
}

fn discard(world: &World) -> Case {
    give_back(world, 300)
}

fn discard_much(world: &World) -> Case {
    if !e2e::long_cases() {
        return Err(Verdict::Skipped(e2e::LONG.into()));
    }
    give_back(world, 2048)
}

fn give_back(world: &World, mebibytes: u64) -> Case {
    let folder = world.project("main");
    world.shell_ok(&folder, "true")?;
    let layer = layer(world, "shell-main")?;
    let before = taken(&layer);
    world.shell_ok(
        &folder,
        &format!("dd if=/dev/urandom of=/var/tmp/much bs=1M count={mebibytes} conv=fsync status=none"),
    )?;
    let full = taken(&layer);
    ensure(
        full + 32 >= before + mebibytes,
        format!("{mebibytes} MiB are written: {before} and then {full} MiB"),
    )?;
    // The guest gives back with its next journal commit, within seconds. What is promised is a minute.
    let begun = std::time::Instant::now();
    let open =
        world.viv(&folder, ["exec", "shell-main", "sh", "-c", "rm /var/tmp/much; sleep 1000"]).spawn()?;
    let back = eventually("the space of the removed file", || taken(&layer) <= before + 32);
    e2e::end(open);
    back?;
    ensure(begun.elapsed().as_secs() < 60, "the space came back, but not within a minute")
}

fn trim(world: &World) -> Case {
    let folder = world.project("trim");
    world.shell_ok(&folder, "dd if=/dev/urandom of=/var/tmp/much bs=1M count=200 conv=fsync status=none")?;
    let layer = layer(world, "shell-trim")?;
    let full = taken(&layer);
    // As if the kill came when the removal was durable and its blocks were not yet given back.
    let script = "mount -o remount,nodiscard /run/vivarium/disk && rm /var/tmp/much && sync -f /var/tmp";
    let said = world.run(&["exec", "-u", "root", "shell-trim", "sh", "-c", script])?;
    ensure(said.code == 0, format!("{said:?}"))?;
    kill_shim(world, "shell-trim")?;
    ensure(taken(&layer) + 32 >= full, format!("{} of {full} MiB are left at the kill", taken(&layer)))?;
    let said = world.run(&["exec", "shell-trim", "true"])?;
    ensure(said.code == 0, format!("{said:?}"))?;
    eventually("the space of the file that was removed before the kill", || taken(&layer) + 150 < full)?;
    world.run(&["rm", "-f", "shell-trim"]).map(|_| ())
}

fn kill_shim(world: &World, name: &str) -> Case {
    let runtime = std::fs::read(world.folder(name)?.join("runtime.json"))?;
    let runtime: serde_json::Value = serde_json::from_slice(&runtime)?;
    let pid =
        runtime["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    let pid = pid.ok_or_else(|| Verdict::Wrong("runtime.json names no process".into()))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    Ok(())
}

/// `viv check --json`, with its exit code.
fn look(world: &World, name: &str) -> Result<(i32, serde_json::Value), Verdict> {
    let said = world.run(&["check", "--json", name])?;
    let found =
        serde_json::from_slice(&said.out).map_err(|error| Verdict::Wrong(format!("{error}: {said:?}")))?;
    Ok((said.code, found))
}

fn check(world: &World) -> Case {
    let folder = world.project("looked-at");
    let name = "shell-looked-at";
    world.shell_ok(&folder, "echo kept > ~/kept; sync -f ~")?;
    let said = world.run(&["check", name])?;
    ensure(said.code == 125 && said.err.contains("is running"), format!("{said:?}"))?;
    // After a kill there is a journal to replay, which is only done above the disk.
    kill_shim(world, name)?;
    let layer = layer(world, name)?;
    let mut written = Vec::new();
    for _ in 0..2 {
        let (code, found) = look(world, name)?;
        ensure(
            code == 0
                && found["clean"] == true
                && found["disk"]["made"] == true
                && found["disk"]["layers"][0]["format"] == "raw"
                && found["file_system"]["used"].as_u64().is_some_and(|used| used > 0),
            format!("{code}: {found}"),
        )?;
        // (Not the blocks: the host allocates those of before when it likes.)
        let meta = std::fs::metadata(&layer)?;
        written.push((meta.mtime(), meta.mtime_nsec(), meta.len()));
    }
    ensure(written[0] == written[1], format!("the disk was written to: {written:?}"))?;
    let left: Vec<_> = std::fs::read_dir(world.folder(name)?.join("disk"))?.flatten().collect();
    ensure(left.len() == 2, format!("{left:?}"))?;
    let said = world.shell_ok(&folder, "cat ~/kept")?;
    ensure(said == "kept", said)?;
    world.run(&["rm", "-f", name]).map(|_| ())
}

/// Zeros where the file system begins, as a host that lost a block leaves them: it is not taken for a new disk.
fn damaged(world: &World) -> Case {
    let folder = world.project("damaged");
    let name = "shell-damaged";
    world.shell_ok(&folder, "echo kept > ~/kept")?;
    world.run(&["stop", name])?;
    let path = layer(world, name)?;
    let disk = File::options().read(true).write(true).open(&path)?;
    let mut start = vec![0; 64 << 10];
    disk.read_exact_at(&mut start, 0)?;
    let garbage: Vec<u8> = start.iter().enumerate().map(|(at, byte)| byte ^ (at as u8 | 1)).collect();
    // (What is put there, a word of what is said at the start.)
    for (bytes, word) in [(vec![0; 64 << 10], "blank"), (garbage, "not ext4")] {
        disk.write_all_at(&bytes, 0)?;
        let said = world.shell(&folder, "true", b"")?;
        ensure(
            said.code == 125
                && said.err.lines().count() == 2
                && said.err.contains("The sandbox's disk is damaged")
                && said.err.contains(word)
                && said.err.contains("viv check"),
            format!("{said:?}"),
        )?;
        let (code, found) = look(world, name)?;
        ensure(code == 1 && found["clean"] == false, format!("{code}: {found}"))?;
        ensure(found["file_system"]["findings"][0].is_string(), format!("{found}"))?;
    }
    // Nothing was lost by all that.
    disk.write_all_at(&start, 0)?;
    let said = world.shell_ok(&folder, "cat ~/kept")?;
    ensure(said == "kept", said)?;
    world.run(&["rm", "-f", name]).map(|_| ())
}

fn damaged_files(world: &World) -> Case {
    let folder = world.project("files");
    let name = "shell-files";
    world.shell_ok(&folder, "echo kept > ~/kept")?;
    world.run(&["stop", name])?;
    let disk = world.folder(name)?.join("disk");
    let description = std::fs::read(disk.join("disk.json"))?;
    let newer = String::from_utf8_lossy(&description).replace("\"version\":1", "\"version\":9");
    // (disk.json, whether its layer is there, a word of what is said)
    for (text, there, word) in [
        (&description[..20], true, "damaged"),
        (newer.as_bytes(), true, "version 9"),
        (&description[..], false, "missing"),
    ] {
        std::fs::write(disk.join("disk.json"), text)?;
        if !there {
            std::fs::rename(disk.join("layer-0.raw"), disk.join("away"))?;
        }
        for arguments in [&["check", name][..], &["check", "--quick", name], &["exec", name, "true"]] {
            let said = world.run(arguments)?;
            ensure(
                said.code == 125 && said.err.lines().count() == 2 && said.err.contains(word),
                format!("{arguments:?}: {said:?}"),
            )?;
        }
    }
    std::fs::rename(disk.join("away"), disk.join("layer-0.raw"))?;
    let said = world.shell_ok(&folder, "cat ~/kept")?;
    ensure(said == "kept", said)?;
    world.run(&["rm", "-f", name]).map(|_| ())
}
