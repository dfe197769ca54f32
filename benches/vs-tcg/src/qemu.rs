//! QEMU's software processor with the machine that a guest of ours expects.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_proto::abi::serial::BASE;
use anyhow::{Context, Result, bail};

/// What persistent memory's length is a multiple of, as with `viv`; other files become disks there, too.
const PMEM_ALIGN: u64 = 2 << 20;

/// A disk: its serial number in the guest, the raw file, and whether it is read-only.
pub type Disk = (String, PathBuf, bool);

/// What to boot.
#[derive(Debug)]
pub struct Machine<'m> {
    /// The compressed kernel.
    pub bzimage: &'m Path,
    /// The initramfs.
    pub initramfs: &'m Path,
    /// Further words of the kernel's command line.
    pub words: &'m str,
    /// Its disks; the base is persistent memory where its length allows that.
    pub disks: &'m [Disk],
    /// vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Further arguments for QEMU, such as a network card.
    pub further: &'m [String],
}

impl Machine<'_> {
    /// Boots it and gives every line of its console to `line`; ends when the guest has powered off.
    ///
    /// # Errors
    /// There is no QEMU 10 and none to be fetched, a disk cannot be used, or QEMU ended with an error.
    pub fn run(&self, line: &mut dyn FnMut(&str)) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut qemu = nested::qemu()?;
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
        qemu.args(self.further);
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
