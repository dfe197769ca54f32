//! The software CPU against QEMU's TCG: the same kernel, initramfs, disks and binaries, side by side in one run.
//!
//! `cargo run --release -p vs-tcg` prints the table of `docs/benchmarks.md`. It needs QEMU 10 or newer, gcc, and the base
//! image (`viv run shell` makes it). `--times N` (default 5) repeats each row, `--only viv|qemu` measures one side.

mod guest;
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

fn run() -> Result<()> {
    let (mut times, mut sides) = (5, vec![Side::Qemu, Side::Viv]);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--times" => times = value()?.parse().context("--times takes a number")?,
            "--only" => {
                sides = match value()?.as_str() {
                    "viv" => vec![Side::Viv],
                    "qemu" => vec![Side::Qemu],
                    other => bail!("--only takes viv or qemu, not {other}"),
                }
            }
            other => bail!("unknown argument {other}; known: --times N, --only viv|qemu"),
        }
    }
    let bench = Bench::prepare(times)?;
    let mut rows = Rows::default();
    bench.native(&mut rows)?;
    for side in sides {
        bench.boots(side, &mut rows)?;
        bench.work(side, &mut rows)?;
    }
    print!("{}", rows.markdown());
    Ok(())
}
