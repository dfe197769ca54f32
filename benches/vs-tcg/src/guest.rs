//! Boots the same guest on both sides and reads the rows it reports on its console.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sandbox::assets::{Assets, newest_initramfs};
use sandbox::build_vm::{self, Job, JobDisk};
use sandbox::engine::Engine;
use sandbox::places::Places;
use tempfile::TempDir;
use vs_tcg::qemu::Machine;

use crate::table::Rows;

/// Who runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Viv,
    /// As `Viv`, with the base image as a disk in place of persistent memory.
    VivBlk,
    Qemu,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Viv => "viv",
            Self::VivBlk => "viv-blk",
            Self::Qemu => "qemu",
        }
    }
}

const MEMORY_MIB: u64 = 4096;
const CPUS: u32 = 2;
const DISK_BYTES: u64 = 8 << 30;
/// What the first boots run: they only say that the agent is there.
const READY: &str =
    "#!/bin/sh\nread -r up rest < /proc/uptime\necho \"ROW boot-to-agent ${up%.*}${up#*.}0000000\"\n";
const WORK_C: &str = include_str!("../guest/work.c");
const RUN_SH: &str = include_str!("../guest/run.sh");

/// Everything both sides share.
pub(crate) struct Bench {
    folder: TempDir,
    assets: Assets,
    /// The kernel as QEMU takes it.
    bzimage: PathBuf,
    times: u32,
}

impl Bench {
    pub(crate) fn prepare(times: u32) -> Result<Self> {
        let places = Places::from_env()?;
        let image = store::Store::open(&places.cache)?.base()?.context(
            "there is no base image yet: `cargo run --release -- run shell . -- -c true` makes it",
        )?;
        let initramfs = newest_initramfs(&places.cache)
            .context("there is no initramfs in the cache: start a sandbox once")?;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let at = folder.path();
        fs::write(at.join("work.c"), WORK_C)?;
        let gcc = Command::new("gcc")
            .args(["-O2", "-static", "-o"])
            .arg(at.join("work"))
            .arg(at.join("work.c"))
            .status();
        if !gcc.context("cannot start gcc")?.success() {
            bail!("gcc could not build the measured binary");
        }
        fs::create_dir(at.join("image"))?;
        fs::copy(at.join("work"), at.join("image/work"))?;
        fs::write(
            at.join("image/Dockerfile"),
            "FROM scratch\nCOPY work /work\nCMD [\"/work\", \"nothing\"]\n",
        )?;
        fs::set_permissions(at.join("work"), fs::Permissions::from_mode(0o755))?;
        let tar = Command::new("tar")
            .arg("-C")
            .arg(at)
            .args(["-cf"])
            .arg(at.join("input.tar"))
            .args(["work", "image"])
            .status();
        if !tar.context("cannot start tar")?.success() {
            bail!("tar could not pack the guest's input");
        }
        pad(&at.join("input.tar"))?;
        for (name, text) in [
            ("ready.sh", READY.to_owned()),
            ("run.sh", RUN_SH.replace("${BENCH_TIMES:-5}", &times.to_string())),
        ] {
            fs::write(at.join(name), text)?;
            pad(&at.join(name))?;
        }
        let assets = Assets { kernel: image.kernel.elf, initramfs, base: Some(image.base) };
        Ok(Self { folder, assets, bzimage: image.kernel.bzimage, times })
    }

    /// The loops on the host itself.
    pub(crate) fn native(&self, rows: &mut Rows) -> Result<()> {
        for what in ["integer", "memory", "floating", "spawn"] {
            for _ in 0..self.times {
                let output = Command::new(self.folder.path().join("work")).arg(what).output()?;
                let text = String::from_utf8(output.stdout)?;
                let (_, value) = text.trim().split_once(' ').context("the measured binary said nothing")?;
                rows.add(what, "native", value.parse()?);
            }
        }
        Ok(())
    }

    /// All rows of these sides: boots until the agent runs, and one boot that does all the rest.
    pub(crate) fn all(&self, sides: &[Side], rows: &mut Rows) -> Result<()> {
        for _ in 0..self.times {
            sides.iter().try_for_each(|side| self.boot(*side, "ready.sh", rows))?;
        }
        sides.iter().try_for_each(|side| self.boot(*side, "run.sh", rows))
    }

    fn boot(&self, side: Side, script: &str, rows: &mut Rows) -> Result<()> {
        let at = self.folder.path();
        let disk = at.join("disk.raw");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        let disks = [
            ("viv-disk", disk, false),
            ("viv-script", at.join(script), true),
            ("viv-input", at.join("input.tar"), true),
        ];
        let mut failed = Vec::new();
        let mut line = |text: &str| {
            if std::env::var_os("VERBOSE").is_some() {
                eprintln!("{} | {text}", side.name());
            }
            let mut words = text.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("ROW"), Some(row), Some(value)) => {
                    if let Ok(value) = value.parse() {
                        eprintln!("{:>5} {row}: {:.1} ms", side.name(), value as f64 / 1e6);
                        rows.add(row, side.name(), value);
                    }
                }
                (Some("ROW-FAILED"), ..) => failed.push(text.to_owned()),
                (Some("ROW-IDLE"), ..) => {
                    if let Some(bytes) = memory_beyond_ram() {
                        rows.add("memory beyond guest RAM, bytes", side.name(), bytes);
                    }
                }
                _ => {}
            }
        };
        match side {
            Side::Viv => self.boot_viv(&self.assets, &disks, &mut line)?,
            Side::VivBlk => self.boot_viv(&self.with_a_disk()?, &disks, &mut line)?,
            Side::Qemu => self.boot_qemu(&disks, &mut line)?,
        }
        if failed.is_empty() { Ok(()) } else { bail!("on {}: {}", side.name(), failed.join("; ")) }
    }

    /// A base whose length is no multiple of large pages cannot be mapped and is offered as a disk.
    fn with_a_disk(&self) -> Result<Assets> {
        let base = self.assets.base.as_deref().context("the bench has a base image")?;
        let copy = self.folder.path().join("base.erofs");
        if !copy.exists() {
            fs::copy(base, &copy)?;
            let file = File::options().write(true).open(&copy)?;
            file.set_len(file.metadata()?.len() + 4096)?;
        }
        Ok(Assets { base: Some(copy), ..self.assets.clone() })
    }

    fn boot_viv(
        &self,
        assets: &Assets,
        disks: &[(&str, PathBuf, bool)],
        line: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let disks: Vec<_> = disks
            .iter()
            .map(|(serial, file, read_only)| JobDisk {
                serial: (*serial).into(),
                file: file.clone(),
                read_only: *read_only,
            })
            .collect();
        let words = WORDS.iter().map(|word| (*word).to_owned()).collect();
        let job = Job {
            assets,
            disks: &disks,
            words,
            engine: Engine::Soft,
            cpus: CPUS,
            memory: MEMORY_MIB << 20,
            link: None,
        };
        Ok(build_vm::run(&job, line)?)
    }

    fn boot_qemu(&self, disks: &[(&str, PathBuf, bool)], line: &mut dyn FnMut(&str)) -> Result<()> {
        let base = self.assets.base.clone().context("the bench has a base image")?;
        let all: Vec<_> = std::iter::once(&("viv-base", base, true))
            .chain(disks)
            .map(|(serial, file, read_only)| ((*serial).to_owned(), file.clone(), *read_only))
            .collect();
        let machine = Machine {
            bzimage: &self.bzimage,
            initramfs: &self.assets.initramfs,
            words: &WORDS.join(" "),
            disks: &all,
            cpus: CPUS,
            memory_mib: MEMORY_MIB,
            further: &[],
        };
        machine.run(line)
    }
}

/// For the agent, and the switches that `soft` sets anyway, so that both sides run the same kernel code.
const WORDS: [&str; 4] = ["viv.script=viv-script", "viv.docker=off", "mitigations=off", "ia32_emulation=0"];

/// Block devices have whole sectors.
fn pad(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let len = file.metadata()?.len();
    Ok(file.set_len(len.next_multiple_of(4096))?)
}

/// Proportional set size of this process's children without the mappings of guest RAM.
fn memory_beyond_ram() -> Option<u64> {
    let me = std::process::id().to_string();
    let mut sum = 0;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
        if parent == Some(me.as_str()) {
            sum += private_bytes(&fs::read_to_string(entry.path().join("smaps")).ok()?);
        }
    }
    (sum > 0).then_some(sum)
}

/// Guest RAM and the mapped base image are the mappings of half a GiB and more.
fn private_bytes(smaps: &str) -> u64 {
    let (mut size, mut sum) = (0, 0);
    let kib = |text: &str| text.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0);
    for line in smaps.lines() {
        if let Some(text) = line.strip_prefix("Size:") {
            size = kib(text);
        } else if let Some(text) = line.strip_prefix("Pss:")
            && size < 512 << 10
        {
            sum += kib(text) << 10;
        }
    }
    sum
}
