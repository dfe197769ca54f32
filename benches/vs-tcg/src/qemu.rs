//! QEMU's software processor with the machine that a guest of ours expects.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_proto::abi::serial::BASE;
use anyhow::{Context, Result, bail};

/// The oldest QEMU whose figures count.
const OLDEST: u32 = 10;
/// What persistent memory's length is a multiple of, as with `viv`; other files become disks there, too.
const PMEM_ALIGN: u64 = 2 << 20;

/// Fails unless there is a QEMU that is new enough to compare with.
pub(crate) fn check_version() -> Result<()> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().context("cannot start QEMU")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_whitespace().skip_while(|word| *word != "version");
    let major = words.skip(1).find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(major) if major >= OLDEST => Ok(()),
        _ => bail!(
            "QEMU {OLDEST} or newer is needed; this one says: {}",
            text.lines().next().unwrap_or_default()
        ),
    }
}

/// A disk: its serial number in the guest, the raw file, and whether it is read-only.
pub(crate) type Disk = (String, PathBuf, bool);

/// What to boot.
pub(crate) struct Machine<'m> {
    /// The compressed kernel.
    pub(crate) bzimage: &'m Path,
    pub(crate) initramfs: &'m Path,
    /// Further words of the kernel's command line.
    pub(crate) words: &'m str,
    pub(crate) disks: &'m [Disk],
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
}

impl Machine<'_> {
    /// Boots it and gives every line of its console to `line`; ends when the guest has powered off.
    pub(crate) fn run(&self, line: &mut dyn FnMut(&str)) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi"])
            .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &format!("{},maxmem={}M", self.memory_mib, self.memory_mib + (16 << 10))])
            .arg("-kernel")
            .arg(self.bzimage)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 viv.time={now} {}", self.words)]);
        for (number, (serial, file, read_only)) in self.disks.iter().enumerate() {
            let length = std::fs::metadata(file)?.len();
            if serial == BASE && length.is_multiple_of(PMEM_ALIGN) {
                qemu.arg("-object").arg(format!(
                    "memory-backend-file,id=base,size={length},share=off,readonly=on,rom=off,mem-path={}",
                    file.display()
                ));
                qemu.args(["-device", "virtio-pmem-pci,memdev=base"]);
                continue;
            }
            let (file, read_only) = (file.display(), if *read_only { "on" } else { "off" });
            qemu.arg("-drive").arg(format!(
                "id=d{number},if=none,format=raw,cache=unsafe,discard=unmap,readonly={read_only},file={file}"
            ));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=d{number},serial={serial}"));
        }
        let mut child =
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
        let output = child.stdout.take().context("QEMU has an output")?;
        for bytes in BufReader::new(output).split(b'\n') {
            line(String::from_utf8_lossy(&bytes?).trim_end());
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}
