//! The gateway against passt, frames in memory on one side and sockets of this host on the other, side by side in one run; and what
//! looking into HTTPS adds to a request. With `--guests` also whole guests: ours with its gateway, QEMU's with passt and with slirp.
//!
//! `cargo run --release -p network-bench` prints the tables of `docs/benchmarks.md`. passt and QEMU come from Debian's archive if the
//! host has none; guests need gcc and the base image (`viv run shell` makes it). `--times N` (default 5) repeats each row, `--only
//! alone|inspected|guests` measures one table and `--row` rows of the first; `--viv FILE` measures that program's gateway in place of
//! this tree's.

mod alone;
mod costs;
mod guests;
mod inspected;
mod peer;
mod segment;
mod server;
mod side;
mod table;
mod wire;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use sandbox::launch::VMM_ROLE;

use crate::server::Servers;
use crate::side::{PASST, Side, VIV};
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
    let (mut times, mut only, mut row, mut program, mut guests) = (5, None, None, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--times" => times = value()?.parse().context("--times takes a number")?,
            "--only" => only = Some(one_of(value()?, &["alone", "inspected", "guests"])?),
            "--row" => row = Some(one_of(value()?, &["idle", "up", "down", "requests", "connections"])?),
            "--guests" => guests = true,
            "--viv" => program = Some(PathBuf::from(value()?)),
            other => bail!(
                "unknown argument {other}; known: --times N, --guests, --only TABLE, --row ROW, --viv FILE"
            ),
        }
    }
    let program = program.map_or_else(viv, Ok)?;
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wanted("alone") {
        let mut rows = Rows::default();
        alone(&program, times, row.as_deref(), &mut rows)?;
        println!("{}", rows.markdown(&[VIV, PASST]));
    }
    if wanted("inspected") {
        let mut rows = Rows::default();
        inspected::measure(&program, times, &mut rows)?;
        println!("{}", rows.markdown(&inspected::COLUMNS));
    }
    if guests || only.as_deref() == Some("guests") {
        let mut rows = Rows::default();
        guests::measure(&program, times, &mut rows)?;
        println!("{}", rows.markdown(&guests::COLUMNS));
    }
    Ok(())
}

fn one_of(value: String, known: &[&str]) -> Result<String> {
    ensure!(known.contains(&value.as_str()), "{value} is none of {}", known.join(", "));
    Ok(value)
}

/// The real program.
fn viv() -> Result<PathBuf> {
    let status = Command::new("cargo").args(["build", "--release", "-p", "viv"]).status()?;
    let program = std::env::current_exe()?.with_file_name("viv");
    if !status.success() || !program.is_file() {
        bail!("there is no {}", program.display());
    }
    Ok(program)
}

fn alone(program: &Path, times: usize, part: Option<&str>, rows: &mut Rows) -> Result<()> {
    let servers = Servers::start()?;
    let ports = [servers.sink, servers.source, servers.echo];
    let wanted = |name: &str| part.is_none_or(|part| part == name);
    if wanted("idle") {
        for _ in 0..times.min(3) {
            alone::idle(&mut Side::gateway(program, &ports)?, &servers, rows)?;
            alone::idle(&mut Side::passt()?, &servers, rows)?;
        }
    }
    type Work = fn(&mut Side, &Servers, &mut Rows) -> Result<()>;
    let works: [(&str, Work); 4] = [
        ("up", alone::up),
        ("down", alone::down),
        ("requests", alone::requests),
        ("connections", alone::connections),
    ];
    let mut sides = [Side::gateway(program, &ports)?, Side::passt()?];
    for (_, work) in works.iter().filter(|(name, _)| wanted(name)) {
        for _ in 0..times {
            sides.iter_mut().try_for_each(|side| work(side, &servers, rows))?;
        }
    }
    for side in &sides {
        if side.peer.again > 0 {
            eprintln!("{}: the guest sent something again {} times", side.name, side.peer.again);
        }
    }
    Ok(())
}
