//! The `viv` command: it parses, prints and waits; what it does with sandboxes is in the `sandbox` crate.

mod cli;
mod commands;
mod failure;
mod keep;
mod mistakes;
mod notices;
mod progress;
mod roles;
mod session;
mod setup;
mod ssh;
mod sys;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    // Every role and most commands hold values of secrets at some time.
    sys::forbid_dumps();
    outlive_file_limits();
    if let Some(code) = roles::dispatch() {
        return code;
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => {
            match mistakes::explain(&error, &words) {
                Some(failure) => failure.print(),
                None => drop(error.print()),
            }
            // Help and version are answers; all else is a mistake in the command line, which is ours to report.
            return if error.use_stderr() { ExitCode::from(failure::OURS) } else { ExitCode::SUCCESS };
        }
    };
    start_log(cli.verbose);
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

/// Where a file may not grow (`ulimit -f`), the kernel sends SIGXFSZ, which ends a process, before it refuses the write. A handler that
/// does nothing leaves the refusal, in every role of this program; programs that it starts have none.
fn outlive_file_limits() {
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}

fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Run(options) => commands::run::run(&options, cli.no_input),
        Command::Create(options) => commands::run::create(&options, cli.no_input),
        Command::Attach(options) => commands::run::attach(&options, cli.no_input),
        Command::Exec(options) => commands::exec::run(options, cli.no_input),
        Command::Ls(options) => commands::ls::run(&options),
        Command::Start(options) => commands::lifecycle::start(&options, cli.no_input),
        Command::Stop(options) => commands::lifecycle::stop(&options),
        Command::Rm(options) => commands::lifecycle::remove(&options, cli.no_input),
        Command::Check(options) => commands::check::run(&options, cli.no_input),
        Command::Logs(options) => commands::logs::run(&options),
        Command::Cp(options) => commands::cp::run(&options, cli.no_input),
        Command::Prune(options) => commands::prune::run(&options, cli.no_input),
        Command::Policy(options) => commands::policy::run(&options.command, cli.no_input),
        Command::Ports(options) => commands::ports::run(&options),
        Command::Inspect(options) => commands::inspect::run(&options),
        Command::Secret(options) => commands::secret::run(&options, cli.no_input),
        Command::Diagnose(options) => commands::diagnose::run(&options, cli.verbose > 0),
    }
}

/// Details go to the standard error, and only when asked for: `-v`, `-vv` or `VIV_LOG`.
fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let filter = match (std::env::var("VIV_LOG"), verbose) {
        (Ok(text), _) if !text.is_empty() => EnvFilter::new(text),
        (_, 0) => EnvFilter::new("off"),
        (_, 1) => EnvFilter::new("info"),
        _ => EnvFilter::new("debug"),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}
