//! The first run's set-up by its parts: the real `viv` with an empty cache, then the same build in QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use fetch::Silent;
use image_builder::{Boot, BuilderVm, VmError};
use sandbox::assets::newest_initramfs;
use sandbox::places::Places;
use store::{Record, Store};
use vs_tcg::qemu::Machine;

use crate::guest::Side;
use crate::table::Rows;

/// Does the set-up on these sides, in folders beside the cache (they need the space), and removes what it made.
pub(crate) fn measure(sides: &[Side], rows: &mut Rows) -> Result<()> {
    let cache = Places::from_env()?.cache;
    fs::create_dir_all(&cache)?;
    let folder = tempfile::tempdir_in(&cache).context("cannot make a temporary folder")?;
    let ours = folder.path().join("viv");
    let viv = built_viv()?;
    if sides.contains(&Side::Viv) {
        first_run(&viv, &ours)?;
        let image = Store::open(&ours.join("cache/vivarium"))?.base()?.context("viv made no image")?;
        add(&image.record, Side::Viv, rows);
    }
    if sides.contains(&Side::Qemu) {
        let theirs = folder.path().join("qemu");
        let downloads = [ours.join("cache/vivarium/downloads"), cache.join("downloads")];
        if let Some(downloads) = downloads.iter().find(|folder| folder.is_dir()) {
            copy(downloads, &theirs.join("downloads"))?;
        }
        // The agent and the kernel's modules are the same for every guest.
        let initramfs = newest_initramfs(&ours.join("cache/vivarium"))
            .or_else(|| newest_initramfs(&cache))
            .context("there is no initramfs in the cache: start a sandbox once")?;
        let image = Store::open(&theirs)?.ensure_base(&Qemu { initramfs }, &Silent)?;
        add(&image.record, Side::Qemu, rows);
    }
    Ok(())
}

/// On QEMU only what happens in the guest is another's work; the host's parts are the same code.
fn add(record: &Record, side: Side, rows: &mut Rows) {
    for part in &record.parts {
        let nanoseconds = part.milliseconds.saturating_mul(1_000_000);
        if side == Side::Viv || part.step == "First boot" {
            rows.add(&format!("set-up: {}", part.step), side.name(), nanoseconds);
        }
    }
}

fn built_viv() -> Result<PathBuf> {
    let status = Command::new("cargo")
        .args(["build", "--release", "-p", "viv"])
        .status()
        .context("cannot start cargo")?;
    let viv = std::env::current_exe()?.with_file_name("viv");
    if !status.success() || !viv.is_file() {
        bail!("there is no {}", viv.display());
    }
    Ok(viv)
}

/// What a new user types, in a home of its own.
fn first_run(viv: &Path, home: &Path) -> Result<()> {
    let project = home.join("project");
    fs::create_dir_all(&project)?;
    let run = |arguments: &[&str]| {
        Command::new(viv)
            .args(arguments)
            .current_dir(&project)
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_STATE_HOME", home.join("state"))
            .status()
    };
    let status = run(&["run", "--engine", "soft", "--name", "setup", "shell", ".", "--", "-c", "true"])?;
    let removed = run(&["rm", "--force", "setup"])?;
    if !status.success() || !removed.success() {
        bail!("viv ended with {status} and {removed}");
    }
    Ok(())
}

/// Downloads are found by their digests, so a copy is as good as a download.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The build's machine in QEMU.
struct Qemu {
    initramfs: PathBuf,
}

impl BuilderVm for Qemu {
    fn run(&self, boot: &Boot<'_>, line: &mut dyn FnMut(&str)) -> Result<(), VmError> {
        let disks: Vec<_> = boot
            .disks
            .iter()
            .map(|disk| (disk.serial.to_owned(), disk.file.clone(), disk.read_only))
            .collect();
        let machine = Machine {
            bzimage: &boot.kernel.bzimage,
            initramfs: &self.initramfs,
            words: &boot.cmdline,
            disks: &disks,
            cpus: boot.cpus,
            memory_mib: boot.memory_mib.into(),
            further: &[],
        };
        machine.run(line).map_err(|error| VmError::Other(format!("{error:#}")))
    }
}
