//! What needs a true KVM, in a machine that is made for it. A host that cannot make one skips every case, with the
//! reason, and counts them.

mod viv;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nested::{Job, Nested, Unavailable};

/// One case: boots a machine of its own.
type Case = (&'static str, fn(&Nested) -> Result<Completion, Failed>);

const CASES: &[Case] = &[
    ("contract_suite_on_true_kvm", contract_suite),
    ("viv_works_on_true_kvm", viv::works_on_true_kvm),
    ("the_network_works_on_true_kvm", viv::network_on_true_kvm),
    ("without_any_engine_the_cause_is_said", viv::old_processor),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A machine has two busy vCPUs.
    arguments.test_threads.get_or_insert(1);
    // Fetched when the first case runs.
    let nested: Arc<LazyLock<Result<Nested, Unavailable>>> = Arc::new(LazyLock::new(Nested::prepare));
    let trials = CASES.iter().map(|(name, run)| {
        let nested = nested.clone();
        Trial::ignorable_test(*name, move || match nested.as_ref().as_ref() {
            Ok(nested) => run(nested),
            Err(why) => Ok(Completion::ignored_with(why)),
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Whether this line of the suite's output says that a case was skipped; the reason follows in brackets.
fn is_skipped(line: &str) -> bool {
    line.starts_with("test ") && line.contains(" ... ignored")
}

fn contract_suite(nested: &Nested) -> Result<Completion, Failed> {
    let program = Path::new(env!("CARGO_BIN_EXE_kvm-contract"));
    let job = Job {
        files: &[(program, "/opt/kvm-contract")],
        script: "/opt/kvm-contract",
        limit: Duration::from_secs(1800),
        ..Default::default()
    };
    let output = nested.run(&job)?;
    for line in output.text.lines().filter(|line| is_skipped(line) || line.starts_with("test result")) {
        println!("{line}");
    }
    let cases = hv_contract::cases().len();
    let passed =
        output.text.lines().filter(|line| line.starts_with("test ") && line.ends_with(" ok")).count();
    let skipped = output.text.lines().filter(|line| is_skipped(line)).count();
    if output.text.contains("emulates ring-0 code") {
        return Err("the machine's KVM is not a true one".into());
    }
    if output.status != 0 || passed + skipped != cases || passed * 10 < cases * 9 {
        return Err(format!("{passed} of {cases} passed, {skipped} skipped:\n{}", output.text).into());
    }
    Ok(Completion::Completed)
}
