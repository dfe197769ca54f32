//! Makes the base image with QEMU's software processor; for bringing things up and for comparing with.
//!
//! `cargo run --release -p store --example build-image -- AGENT [CACHE [LOCK]]`, where AGENT is the static `viv-agent` and CACHE defaults
//! to `~/.cache/vivarium` and LOCK to the lock file that is shipped. Prints where kernel, modules and base image are.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use fetch::{Progress, Unit, Update};
use image_builder::{Boot, BuilderVm};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let agent = PathBuf::from(arguments.next().context("use: build-image AGENT [CACHE [LOCK]]")?);
    let cache = match arguments.next() {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/vivarium"),
    };
    let started = Instant::now();
    let mut store = store::Store::open(&cache)?;
    if let Some(lock) = arguments.next() {
        store = store.with_lock(debian::Lock::parse(&std::fs::read_to_string(lock)?)?);
    }
    let image = store.ensure_base(&Qemu { agent }, &Lines(started))?;
    println!("key      {}", image.key);
    println!("base     {}", image.base.display());
    println!("kernel   {}", image.kernel.elf.display());
    println!("bzimage  {}", image.kernel.bzimage.display());
    println!("modules  {}", image.kernel.modules.display());
    println!("took     {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Progress as plain lines.
struct Lines(Instant);

impl Progress for Lines {
    fn update(&self, update: &Update<'_>) {
        let (scale, unit) = if update.unit == Unit::Bytes { (1_000_000, "MB") } else { (1, "") };
        let left = update.left.map(|left| format!(", {} s left", left.as_secs())).unwrap_or_default();
        let time = self.0.elapsed().as_secs_f64();
        eprintln!(
            "{time:7.1} {}: {}/{} {unit} {}{left}",
            update.step,
            update.done / scale,
            update.total / scale,
            update.detail
        );
    }

    fn finished(&self, step: &str) {
        eprintln!("{:7.1} {step}: done", self.0.elapsed().as_secs_f64());
    }

    fn note(&self, line: &str) {
        eprintln!("{:7.1} {line}", self.0.elapsed().as_secs_f64());
    }
}

struct Qemu {
    agent: PathBuf,
}

impl BuilderVm for Qemu {
    fn run(&self, boot: &Boot<'_>, line: &mut dyn FnMut(&str)) -> Result<(), String> {
        self.start(boot, line).map_err(|error| format!("{error:#}"))
    }
}

impl Qemu {
    fn start(&self, boot: &Boot<'_>, line: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let agent =
            std::fs::read(&self.agent).with_context(|| format!("cannot read {}", self.agent.display()))?;
        let modules = initramfs::Modules::from_dir(&boot.kernel.modules)?;
        let initrd = boot.kernel.elf.with_file_name("initrd.cpio");
        std::fs::write(&initrd, initramfs::build(&agent, &modules)?)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let cmdline = format!("console=ttyS0 quiet panic=-1 viv.time={now} {}", boot.cmdline);

        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35",
            "-cpu",
            "max",
            "-accel",
            "tcg,thread=multi",
            "-nographic",
            "-no-reboot",
            "-nodefaults",
        ]);
        qemu.args(["-serial", "stdio", "-smp", &boot.cpus.to_string(), "-m", &boot.memory_mib.to_string()]);
        qemu.arg("-kernel")
            .arg(&boot.kernel.bzimage)
            .arg("-initrd")
            .arg(&initrd)
            .arg("-append")
            .arg(&cmdline);
        for (number, disk) in boot.disks.iter().enumerate() {
            let (file, read_only) = (disk.file.display(), if disk.read_only { "on" } else { "off" });
            qemu.arg("-drive").arg(format!(
                "id=d{number},if=none,format=raw,cache=unsafe,discard=unmap,readonly={read_only},file={file}"
            ));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=d{number},serial={}", disk.serial));
        }
        let mut child =
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
        let output = child.stdout.take().context("QEMU has no output")?;
        for bytes in BufReader::new(output).split(b'\n') {
            let text = bytes?;
            let text = String::from_utf8_lossy(&text);
            if std::env::var_os("VERBOSE").is_some() {
                eprintln!("| {}", text.trim_end());
            }
            line(&text);
        }
        let status = child.wait()?;
        std::fs::remove_file(&initrd)?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}
