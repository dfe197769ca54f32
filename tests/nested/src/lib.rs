//! A machine with hardware virtualization, made of software, for tests: Debian's stock cloud kernel under QEMU's TCG with
//! AMD SVM emulated, so that its own `kvm_amd` gives a true `/dev/kvm`.
//!
//! Only ratios mean anything in it: guest code runs at TCG's speed, and an exit costs some 36 µs. QEMU 10 is needed:
//! the TCG of 7.2 corrupts flags at `cmpxchg16b`, so that a kernel with KVM dies under load.
//!
//! What the host lacks is fetched with its own apt (and verified by it) into `~/.cache/vivarium/test`, without root and
//! without installing anything. A host that cannot do that gets [`Unavailable`], whose sentence a test shows when it
//! skips itself.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nested = nested::Nested::prepare()?;
//! let job = nested::Job { script: "ls -l /dev/kvm", ..Default::default() };
//! println!("{}", nested.run(&job)?.text);
//! # Ok(()) }
//! ```

mod cpio;
mod initramfs;
mod packages;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::packages::Packages;
pub use crate::packages::{qemu, tool};

/// Why this host can run no nested machine, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Why a job did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file could not be read or written.
    #[error("Cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The machine was still running at the limit. What it said by then is kept.
    #[error("The nested machine ran for more than {limit:?}; it said:\n{text}")]
    Late {
        /// [`Job::limit`].
        limit: Duration,
        /// Its output.
        text: String,
    },
    /// The machine ended before the script did.
    #[error("The nested machine died; it said:\n{text}")]
    Died {
        /// Everything on its console.
        text: String,
    },
    /// A helper program failed.
    #[error("{program} failed: {text}")]
    Helper {
        /// Its name.
        program: &'static str,
        /// What it said.
        text: String,
    },
}

/// What is to run in the machine.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// Host files and the absolute path of each inside. Programs bring the shared libraries that they are linked to.
    pub files: &'a [(&'a Path, &'a str)],
    /// A host folder whose content appears at `/disk`, on a writable ext4 of its own that is thrown away afterwards.
    pub folder: Option<&'a Path>,
    /// Free space to leave on `/disk`, in MiB.
    pub free_mib: u64,
    /// Run as root by busybox's `sh`, with busybox's applets on the path.
    pub script: &'a str,
    /// Memory of the machine in MiB.
    pub memory_mib: u32,
    /// vCPUs of the machine. What has guests of its own needs 1: with 2 host threads QEMU 10.0 now and then saves the state
    /// of the machine itself into the guest's VMCB (seen in its monitor: both RIPs are the one behind VMRUN, both CR3s are
    /// equal), and both kernels are lost. It is no slower: a guest's vCPUs share the one.
    pub vcpus: u32,
    /// The machine's processor, as QEMU names it; with `svm` it has KVM.
    pub cpu: &'a str,
    /// Whether it has a network card, `eth0`, with QEMU's user-mode network behind it (10.0.2.15/24; gateway .2, names .3).
    pub network: bool,
    /// How long it may run, its boot (some 5 s) included.
    pub limit: Duration,
}

impl Default for Job<'_> {
    fn default() -> Self {
        Self {
            files: &[],
            folder: None,
            free_mib: 0,
            script: "true",
            memory_mib: 2048,
            vcpus: 1,
            cpu: "max,+svm",
            network: false,
            limit: Duration::from_secs(300),
        }
    }
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What it wrote to standard output and standard error.
    pub text: String,
    /// Its exit status.
    pub status: i32,
}

/// The parts of nested machines; each [`Nested::run`] boots a new one.
#[derive(Debug)]
pub struct Nested {
    packages: Packages,
}

impl Nested {
    /// Finds or fetches what is needed: QEMU 10, Debian's cloud kernel, a static busybox.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub fn prepare() -> Result<Self, Unavailable> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(Unavailable("nested KVM is made on x86-64 Linux only".into()));
        }
        Ok(Self { packages: Packages::find_or_fetch()? })
    }

    /// Boots a machine, runs the script and powers off.
    ///
    /// # Errors
    /// See [`RunError`]; a script that fails is no error here.
    pub fn run(&self, job: &Job<'_>) -> Result<Output, RunError> {
        let scratch = tempfile::tempdir()
            .map_err(|source| RunError::File { path: "a scratch folder".into(), source })?;
        let initrd = scratch.path().join("initrd.cpio");
        initramfs::write(&initrd, &self.packages, job)?;
        let disk = match job.folder {
            Some(folder) => Some(make_disk(folder, job.free_mib, scratch.path())?),
            None => None,
        };
        let console = scratch.path().join("console");
        let mut qemu = self.packages.qemu();
        qemu.args(["-M", "q35", "-cpu", job.cpu, "-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-smp", &job.vcpus.to_string(), "-m", &job.memory_mib.to_string()])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-kernel")
            .arg(&self.packages.kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
        if let Some(disk) = &disk {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
        }
        if job.network {
            qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        let said = watch(qemu, &console, job.limit)?;
        read_output(&said)
    }
}

/// Runs QEMU to its end or to the limit; gives what is on the console.
fn watch(mut qemu: Command, console: &Path, limit: Duration) -> Result<String, RunError> {
    let errors = console.with_extension("errors");
    let file =
        |path: &Path| File::create(path).map_err(|source| RunError::File { path: path.into(), source });
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file(&errors)?)
        .spawn()
        .map_err(|source| RunError::File { path: "qemu-system-x86_64".into(), source })?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(50)),
            _ => {
                // It may have ended by itself meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let text = text_of(console);
    match status {
        None => Err(RunError::Late { limit, text }),
        Some(status) if status.success() => Ok(text),
        Some(_) => Err(RunError::Helper { program: "qemu-system-x86_64", text: text_of(&errors) + &text }),
    }
}

fn text_of(path: &Path) -> String {
    let mut bytes = Vec::new();
    // A file that is not there has no text.
    let _ = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).replace('\r', "")
}

/// Takes the script's output and status out of what is on the console.
fn read_output(console: &str) -> Result<Output, RunError> {
    let died = || RunError::Died { text: console.to_owned() };
    let (_, rest) = console.split_once(initramfs::START).ok_or_else(died)?;
    let (text, rest) = rest.rsplit_once(initramfs::END).ok_or_else(died)?;
    let status = rest.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or_else(died)?;
    Ok(Output { text: text.trim_start_matches('\n').to_owned(), status })
}

/// Makes an ext4 with a folder's content.
fn make_disk(folder: &Path, free_mib: u64, scratch: &Path) -> Result<PathBuf, RunError> {
    let usage = Command::new("du").arg("-sm").arg(folder).output();
    let used: u64 = usage
        .ok()
        .and_then(|output| String::from_utf8_lossy(&output.stdout).split_whitespace().next()?.parse().ok())
        .unwrap_or(1024);
    let disk = scratch.join("disk.img");
    // A tenth and 64 MiB more for inodes and the journal.
    let size = used + used / 10 + 64 + free_mib;
    let made = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"])
        .arg(folder)
        .arg(&disk)
        .arg(format!("{size}M"))
        .output()
        .map_err(|source| RunError::File { path: "/sbin/mke2fs".into(), source })?;
    if !made.status.success() {
        let text = String::from_utf8_lossy(&made.stderr).into_owned();
        return Err(RunError::Helper { program: "mke2fs", text });
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_between_the_marks() {
        let console = format!("boot\n{}\none\ntwo\n{} 3\n", initramfs::START, initramfs::END);
        assert_eq!(read_output(&console).unwrap(), Output { text: "one\ntwo\n".into(), status: 3 });
    }

    #[test]
    fn a_console_that_ends_early_is_an_error() {
        let console = format!("boot\n{}\none\nKernel panic", initramfs::START);
        assert!(matches!(read_output(&console), Err(RunError::Died { .. })));
    }
}
