//! Compiles a role's table and installs it on every thread.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use crate::ConfineError;
use crate::table::{Call, When};

/// The processes that a table's conditions speak of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processes {
    /// The calling one.
    pub(super) own: u32,
    /// The one that may be killed.
    pub(super) child: Option<u32>,
}

/// Installs the filter for good; gives the number of system calls that it lets through.
pub(super) fn install(calls: &[Call], child: Option<u32>) -> Result<usize, ConfineError> {
    let rules = rules(calls, Processes { own: std::process::id(), child }).map_err(failed)?;
    let refused: BTreeMap<_, _> = calls
        .iter()
        .filter(|call| matches!(call.when, When::Refused))
        .map(|call| (call.number, Vec::new()))
        .collect();
    let count = rules.len().saturating_sub(refused.len());
    let allowed = compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)?;
    // The stricter answer of two filters wins: what that one does not kill, this one still refuses politely.
    let polite = compile(refused, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    apply_filter_all_threads(&polite).map_err(failed)?;
    apply_filter_all_threads(&allowed).map_err(failed)?;
    Ok(count)
}

fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> ConfineError {
    ConfineError::Filter(Box::new(error))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
    SeccompFilter::new(rules, otherwise, matched, arch).and_then(BpfProgram::try_from).map_err(failed)
}

/// The alternatives of each call of a table. A table has no call both with and without conditions.
fn rules(
    calls: &[Call],
    processes: Processes,
) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls {
        if let Some(alternatives) = conditions(call.when, processes)? {
            rules.entry(call.number).or_default().extend(alternatives);
        }
    }
    Ok(rules)
}

/// The alternatives under which a call is let through; no alternatives mean always, `None` means never.
fn conditions(
    when: When,
    processes: Processes,
) -> Result<Option<Vec<SeccompRule>>, seccompiler::BackendError> {
    let compare = |argument, operation, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)
    };
    let equal = |argument, value| compare(argument, SeccompCmpOp::Eq, value);
    let alternatives = match when {
        // The other filter has the last word on what is refused.
        When::Always | When::Refused => Vec::new(),
        When::OneOf(argument, values) => {
            values.iter().map(|value| Ok(vec![equal(argument, *value)?])).collect::<Result<_, _>>()?
        }
        When::Pairs(one, other, values) => values
            .iter()
            .map(|(first, second)| Ok(vec![equal(one, *first)?, equal(other, *second)?]))
            .collect::<Result<_, _>>()?,
        When::Without(argument, bits) => vec![vec![compare(argument, SeccompCmpOp::MaskedEq(bits), 0)?]],
        When::With(argument, bits) => vec![vec![compare(argument, SeccompCmpOp::MaskedEq(bits), bits)?]],
        When::OwnProcess(argument) => vec![vec![equal(argument, processes.own.into())?]],
        When::BothZero(first, second) => {
            // The second one is a pointer: all of its bits count.
            let zero = SeccompCondition::new(second, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
            vec![vec![equal(first, 0)?, zero]]
        }
        When::KillsChild => match processes.child {
            Some(child) => vec![vec![equal(0, child.into())?, equal(1, libc::SIGKILL as u64)?]],
            None => return Ok(None),
        },
    };
    Ok(Some(alternatives.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?))
}
