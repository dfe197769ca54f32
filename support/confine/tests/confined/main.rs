//! A process of either role can do what it must and nothing else. Each case starts this program again as a child, which
//! confines itself and does one thing.

mod attempts;
mod granted;
mod rare;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};

use confine::Role;
use libtest_mimic::{Arguments, Failed, Trial};

/// What a child prints first: it was alive and confined when it did what it is there for.
const CONFINED: &str = "CONFINED\n";
/// What a child prints when it could do what it should.
const FINE: &str = "FINE";

/// The roles by the names that the cases have.
const ROLES: [(&str, Role); 4] =
    [("vmm", Role::Vmm), ("shim", Role::Shim), ("keeper", Role::Keeper), ("gateway", Role::Gateway)];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(outcome) = as_child(&words) {
        return match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                println!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let mut trials = attempts::trials();
    trials.extend(granted::trials());
    trials.extend(rare::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What this process is to do, if it is a case's child.
fn as_child(words: &[&str]) -> Option<Result<(), String>> {
    Some(match words {
        ["--attempt", role, name, folder] => attempts::attempt(role, name, Path::new(folder)),
        ["--use", folder] => granted::use_grants(Path::new(folder)),
        ["--act", role, case, lacking] => rare::act(role, case, lacking),
        ["--kill", vmm, victim] => granted::kill_as_shim(vmm, victim),
        _ => return None,
    })
}

/// The role of this name.
fn role(name: &str) -> Result<Role, String> {
    let found = ROLES.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, role)| role).ok_or_else(|| format!("there is no role {name}"))
}

/// Confines the child without any grants, and says so.
fn confine_as(name: &str) -> Result<confine::Report, String> {
    let report = confine::confine(role(name)?, &confine::Grants::default());
    let report = report.map_err(|error| format!("not confined: {error:?}"))?;
    print!("{CONFINED}");
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    Ok(report)
}

fn child(arguments: &[&str]) -> std::io::Result<Output> {
    Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::null()).output()
}

fn failed(what: &str, output: &Output) -> Failed {
    let said = String::from_utf8_lossy(&output.stdout);
    format!("{what}: ended with {:?} and said {said:?}", output.status).into()
}

/// All trials of a kind, for either role.
fn for_roles(make: impl Fn(&'static str, Role) -> Vec<Trial>) -> Vec<Trial> {
    ROLES.into_iter().flat_map(|(name, role)| make(name, role)).collect()
}
