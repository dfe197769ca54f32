//! The software CPU against QEMU's TCG: the same kernel, initramfs, disks and binaries, side by side in one run.
//!
//! `cargo run --release -p vs-tcg` prints the table of `docs/benchmarks.md`. It needs gcc and the base image (`viv run shell`
//! makes it); QEMU 10 comes from Debian's archive if the host has none. `--times N` (default 5) repeats each row, `--only
//! viv|qemu` measures one side.
//! Instead of that, `--setup` measures the first run's set-up by its parts, once, with an empty cache, and `--bases` the base
//! image as persistent memory with DAX against the same image as a virtio disk.

mod guest;
mod setup;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use sandbox::launch::VMM_ROLE;

use crate::guest::{Bench, Side};
use crate::table::Rows;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(VMM_ROLE) {
        return sandbox::vmm::main();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// `soft` against QEMU's TCG.
    Engines,
    /// The base image as persistent memory against the same as a disk, on `soft`.
    Bases,
    /// The first run's set-up.
    SetUp,
}

fn run() -> Result<()> {
    let (mut times, mut only, mut what) = (5, None, What::Engines);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--setup" => what = What::SetUp,
            "--bases" => what = What::Bases,
            "--times" => times = value()?.parse().context("--times takes a number")?,
            "--only" => {
                only = Some(match value()?.as_str() {
                    "viv" => Side::Viv,
                    "qemu" => Side::Qemu,
                    other => bail!("--only takes viv or qemu, not {other}"),
                });
            }
            other => bail!("unknown argument {other}; known: --times N, --only viv|qemu, --bases, --setup"),
        }
    }
    let sides = match (what, only) {
        (_, Some(only)) => vec![only],
        (What::Bases, None) => vec![Side::VivBlk, Side::Viv],
        (_, None) => vec![Side::Qemu, Side::Viv],
    };
    let mut rows = Rows::default();
    let viv = Side::Viv.name();
    let columns = match what {
        What::SetUp => {
            setup::measure(&sides, &mut rows)?;
            vec![(viv, "viv soft"), (Side::Qemu.name(), "QEMU TCG")]
        }
        What::Bases => {
            Bench::prepare(times)?.all(&sides, &mut rows)?;
            vec![(viv, "pmem"), (Side::VivBlk.name(), "blk")]
        }
        What::Engines => {
            let bench = Bench::prepare(times)?;
            bench.native(&mut rows)?;
            bench.all(&sides, &mut rows)?;
            vec![("native", "native"), (viv, "viv soft"), (Side::Qemu.name(), "QEMU TCG")]
        }
    };
    print!("{}", rows.markdown(&columns));
    Ok(())
}
