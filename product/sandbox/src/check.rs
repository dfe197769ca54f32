//! Looking at a stopped sandbox's disk: what it consists of on the host, and the file system on it.
//!
//! The file system is a guest's work, so it is looked at in a guest: a machine without anything else gets the disk as a
//! [`disk::Preview`], mounts it, which replays the journal as the next start would, and runs `e2fsck -n` on what is there then.
//! Nothing is written to the disk itself.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use agent_proto::abi::{EXIT_LINE, cmdline, serial};
use serde::Serialize;

use crate::assemble;
use crate::assets::Assets;
use crate::build_vm::{self, Job};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::escape::escaped;
use crate::folder::{Lock, Sandbox};
use crate::plan::{Descriptors, Disk, Store};

/// The guest's memory in bytes: enough for e2fsck on large disks, whose bitmaps are compact.
const MEMORY: u64 = 512 << 20;
/// Most findings that are kept, and most characters of each: the disk's content may have a part in the words.
const MOST_FINDINGS: usize = 20;
const LONGEST_FINDING: usize = 200;
/// How long the look may take, and how many bytes of the disk make it a second longer: what is on the disk is a guest's work, and may
/// be made so that looking at it never ends.
const PATIENCE: Duration = Duration::from_secs(900);
const BYTES_A_SECOND: u64 = 16 << 20;
/// How the script's own lines begin.
const MARK: &str = "VIV-CHECK";

/// What is run in the guest. Mounting a damaged file system can fail or note errors in the kernel's log; e2fsck says the rest.
const SCRIPT: &str = r#"disk=/dev/disk/by-id/virtio-viv-output
mkdir -p /run/look
if mount -t ext4 -o noatime,nodiscard,errors=remount-ro "$disk" /run/look 2>/run/why; then
    set -- $(df -B1 --output=size,used /run/look | tail -n 1)
    echo "VIV-CHECK use $1 $2"
    umount /run/look || echo "VIV-CHECK found it cannot be unmounted"
else
    echo "VIV-CHECK found it cannot be mounted: $(tail -n 1 /run/why)"
fi
e2fsck -f -n "$disk" >/run/report 2>/run/errors
code=$?
if [ $code -ne 0 ]; then
    grep -v -e '^Pass [0-9]' -e '^e2fsck ' -e '^$' /run/errors /run/report -h | head -n 40 | while read -r line; do
        echo "VIV-CHECK found $line"
    done
fi
echo "VIV-CHECK e2fsck $code"
"#;

/// What was found on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The disk's files.
    pub disk: disk::Report,
    /// Its file system; none when no guest has made one yet.
    pub file_system: Option<FileSystem>,
}

/// What was found of the file system, as the next start would find it: with its journal replayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileSystem {
    /// Whether it could be mounted and e2fsck found nothing.
    pub clean: bool,
    /// Bytes that it has room for, and bytes in use; none when it cannot be mounted.
    pub size: Option<u64>,
    /// See `size`.
    pub used: Option<u64>,
    /// What is wrong with it, in the words of `mount` and `e2fsck`; bounded.
    pub findings: Vec<String>,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.file_system.as_ref().is_none_or(|found| found.clean)
    }
}

/// Takes a stopped sandbox's lock, for looking at its disk.
///
/// # Errors
/// It runs.
pub fn hold(sandbox: &Sandbox) -> Result<Lock> {
    sandbox.lock_to_check(assemble::DYING)
}

/// Looks at the disk's files only.
///
/// # Errors
/// One of them is not as described; the sentence says which.
pub fn files(sandbox: &Sandbox, _held: &Lock) -> Result<disk::Report> {
    disk::check(assemble::disk_folder(sandbox)?.as_fd()).map_err(|error| damaged(sandbox, &error))
}

/// Looks at the file system, if there is one, after [`files`]; `assets` is what the sandbox boots from.
///
/// # Errors
/// The machine that looks at the file system failed.
pub fn whole(
    sandbox: &Sandbox,
    report: disk::Report,
    _held: &Lock,
    assets: &Assets,
    engine: Engine,
) -> Result<Findings> {
    let patience = PATIENCE + Duration::from_secs(report.allocated / BYTES_A_SECOND);
    let look = || file_system(sandbox, assets, engine, patience);
    let file_system = if report.made { Some(look()?) } else { None };
    Ok(Findings { disk: report, file_system })
}

fn damaged(sandbox: &Sandbox, error: &disk::DiskError) -> Error {
    if matches!(error, disk::DiskError::InUse) {
        return Error::Running { name: sandbox.spec.name.clone() };
    }
    Error::Disk {
        name: sandbox.spec.name.clone(),
        folder: sandbox.disk_folder(),
        why: crate::engine::sentence(error),
    }
}

/// An error that leaves it open how the disk is.
fn unchecked(error: Error) -> Error {
    let hint = error.hint().or(Some(NEXT_STEP.into()));
    let why = match error {
        Error::NotStarted { why, .. } => why,
        other => other.to_string(),
    };
    Error::Unchecked { why, hint }
}

/// What can be done when the machine was of no use.
const NEXT_STEP: &str = "-v says more; viv check --quick looks at the disk's files only";

fn file_system(sandbox: &Sandbox, assets: &Assets, engine: Engine, patience: Duration) -> Result<FileSystem> {
    let folder = assemble::disk_folder(sandbox)?;
    let (description, layer) = assemble::patiently(|| disk::open_to_look(folder.as_fd()))
        .map_err(|error| damaged(sandbox, &error))?;
    let mut descriptors = Descriptors::new();
    let preview = Store::Preview {
        layer: descriptors.add(layer),
        scratch: descriptors.add(nameless(sandbox)?),
        size: description.size,
    };
    let (script, length) = script(sandbox)?;
    let script = Store::Raw { file: descriptors.add(script), length, read_only: true, durable: false };
    let disks = vec![
        Disk { serial: serial::OUTPUT.into(), store: preview },
        Disk { serial: serial::SCRIPT.into(), store: script },
    ];
    let words = [(cmdline::SCRIPT, serial::SCRIPT), (cmdline::ROOT, "memory"), (cmdline::DOCKER, "off")];
    let job = Job {
        assets,
        disks: &[],
        words: words.map(|(name, value)| format!("{name}={value}")).into(),
        engine,
        cpus: 1,
        memory: MEMORY,
        link: None,
    };
    let mut heard = Heard::default();
    build_vm::run_with(&job, descriptors, disks, Some(patience), &mut |line| heard.line(line))
        .map_err(unchecked)?;
    heard.end()
}

/// A file without a name beside the disk: what is written to it is gone with its last descriptor.
fn nameless(sandbox: &Sandbox) -> Result<OwnedFd> {
    let folder = sandbox.disk_folder();
    let fail = |source: std::io::Error| Error::file("cannot make a file in", &folder, source);
    match crate::sys::nameless_file(&folder) {
        Ok(file) => Ok(file),
        // Some file systems have no such files.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(".preview");
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.map_err(fail)?;
            std::fs::remove_file(&path).map_err(fail)?;
            Ok(file.into())
        }
        Err(error) => Err(fail(error.into())),
    }
}

/// The script as a disk of whole sectors.
fn script(sandbox: &Sandbox) -> Result<(OwnedFd, u64)> {
    let mut bytes = SCRIPT.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let length = bytes.len() as u64;
    let mut file = File::from(nameless(sandbox)?);
    file.write_all(&bytes).map_err(|error| Error::host("cannot write a script", error))?;
    Ok((file.into(), length))
}

/// What the guest has said so far.
#[derive(Debug, Default)]
struct Heard {
    use_of_it: Option<(u64, u64)>,
    findings: Vec<String>,
    e2fsck: Option<u32>,
    ended: bool,
}

impl Heard {
    /// One line of the console.
    fn line(&mut self, line: &str) {
        if line.starts_with(EXIT_LINE) {
            self.ended = true;
        }
        let Some((what, rest)) = line.strip_prefix(MARK).and_then(|rest| rest.trim_start().split_once(' '))
        else {
            return;
        };
        match what {
            "use" => {
                self.use_of_it = rest
                    .split_once(' ')
                    .and_then(|(size, used)| Some((size.parse().ok()?, used.parse().ok()?)));
            }
            "found" if self.findings.len() < MOST_FINDINGS => {
                self.findings.push(escaped(rest.trim(), LONGEST_FINDING));
            }
            "e2fsck" => self.e2fsck = rest.trim().parse().ok(),
            _ => {}
        }
    }

    fn end(self) -> Result<FileSystem> {
        let (Some(code), true) = (self.e2fsck, self.ended) else {
            return Err(Error::Unchecked {
                why: "the machine that looks at it ended before it had said what it found".into(),
                hint: Some(NEXT_STEP.into()),
            });
        };
        let clean = code == 0 && self.findings.is_empty() && self.use_of_it.is_some();
        let (size, used) = self.use_of_it.unzip();
        Ok(FileSystem { clean, size, used, findings: self.findings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Result<FileSystem> {
        let mut heard = Heard::default();
        lines.iter().for_each(|line| heard.line(line));
        heard.end()
    }

    #[test]
    fn a_clean_file_system_is_mounted_and_has_no_findings() {
        let found =
            heard(&["[ 0.1] x", "VIV-CHECK use 1000 10", "VIV-CHECK e2fsck 0", "VIV-EXIT 0"]).unwrap();
        assert_eq!(found, FileSystem { clean: true, size: Some(1000), used: Some(10), findings: vec![] });
    }

    #[test]
    fn what_is_found_is_bounded_and_draws_nothing() {
        let line = format!("VIV-CHECK found \x1b[2J{}", "x".repeat(1000));
        let mut lines = vec![line.as_str(); 100];
        lines.extend(["VIV-CHECK e2fsck 4", "VIV-EXIT 0"]);
        let found = heard(&lines).unwrap();
        assert!(!found.clean && found.findings.len() == MOST_FINDINGS && found.size.is_none());
        assert!(found.findings.iter().all(|text| text.len() < 300 && !text.contains('\x1b')));
    }

    #[test]
    fn a_machine_that_ended_early_has_found_nothing_out() {
        assert!(heard(&["VIV-CHECK use 1000 10", "VIV-CHECK e2fsck 0"]).is_err());
        assert!(heard(&["VIV-CHECK use 1000 10", "VIV-EXIT 0"]).is_err());
        // Not mounted, and e2fsck content: not clean all the same.
        assert!(
            !heard(&["VIV-CHECK found it cannot be mounted: x", "VIV-CHECK e2fsck 0", "VIV-EXIT 0"])
                .unwrap()
                .clean
        );
    }
}
