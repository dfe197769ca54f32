//! The contract suite: what every engine behind [`hv`] must do, as tiny guests that are assembled here and run on it.
//!
//! A case builds a VM of a few MiB, puts page tables, descriptor tables, exception handlers and a few dozen instructions
//! into it, starts it in long mode by [`hv::Vcpu::set_state`], and looks at what it did. It trusts nothing of the
//! engine: a guest that never comes back fails after [`LIMIT`].
//!
//! An engine's crate runs it from an integration test without the usual harness, one test per case:
//!
//! ```no_run
//! # struct Engine;
//! # fn engine() -> std::sync::Arc<dyn hv::Hypervisor> { unimplemented!() }
//! hv_contract::main(engine(), |_case| None);
//! ```

mod cases;
mod guest;
mod machine;
mod sys;

use std::sync::Arc;
use std::time::Duration;

use hv::Hypervisor;
use libtest_mimic::{Completion, Trial};

/// How long a guest may run before its case fails.
pub const LIMIT: Duration = Duration::from_secs(120);

/// One thing that every engine must do.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, `area::what`.
    pub name: &'static str,
    run: fn(&dyn Hypervisor) -> Result<(), Failure>,
}

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The engine does something else than the contract says.
    Failed(String),
    /// The engine lacks an ability that is optional.
    Skipped(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Failed(text)
    }
}

/// The outcome of a run; every case is named in exactly one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Cases that passed.
    pub passed: Vec<&'static str>,
    /// Cases that failed, and how.
    pub failed: Vec<(&'static str, String)>,
    /// Cases that were left out, and why.
    pub skipped: Vec<(&'static str, String)>,
}

/// Every case of the contract.
pub fn cases() -> &'static [Case] {
    cases::ALL
}

/// Runs the cases whose name contains `filter`, one after the other.
pub fn run(engine: &dyn Hypervisor, filter: &str) -> Report {
    let mut report = Report::default();
    for case in cases().iter().filter(|case| case.name.contains(filter)) {
        match (case.run)(engine) {
            Ok(()) => report.passed.push(case.name),
            Err(Failure::Failed(how)) => report.failed.push((case.name, how)),
            Err(Failure::Skipped(why)) => report.skipped.push((case.name, why)),
        }
    }
    report
}

/// The `main` of an engine's contract test: one test per case, arguments as for any Rust test.
///
/// `gap` names, for each case that this host is known not to be able to pass, the reason; such cases are shown as
/// ignored with it, and counted. An engine that the host does not have leaves out every case in the same way. Cases run
/// one at a time unless `--test-threads` says otherwise, because they hold several threads each.
pub fn main(engine: Arc<dyn Hypervisor>, gap: impl Fn(&str) -> Option<String>) -> ! {
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let absent = engine.probe().err().map(|error| format!("no {} here: {error}", engine.name()));
    let mut trials = Vec::new();
    for case in cases() {
        let reason = absent.clone().or_else(|| gap(case.name));
        let engine = engine.clone();
        trials.push(Trial::ignorable_test(case.name, move || match &reason {
            Some(why) => Ok(Completion::ignored_with(why)),
            None => match (case.run)(&*engine) {
                Ok(()) => Ok(Completion::Completed),
                Err(Failure::Skipped(why)) => Ok(Completion::ignored_with(why)),
                Err(Failure::Failed(how)) => Err(how.into()),
            },
        }));
    }
    libtest_mimic::run(&arguments, trials).exit()
}
