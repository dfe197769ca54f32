//! What a shim and a vmm inherit of the environment: nothing in a release. Other builds pass on what tests and whoever
//! looks for a defect of the software CPU need (docs/soft-cpu.md).

use std::ffi::OsString;

/// What executes guest code: see `hv_soft::SoftEngine::new`.
#[cfg(debug_assertions)]
const SOFT_EXECUTOR: &str = "VIV_SOFT_EXECUTOR";

/// The variables of this process that its shims and vmms are to have.
pub(crate) fn passed_on() -> Vec<(&'static str, OsString)> {
    let variables: Vec<_> = crate::hostile::variable().into_iter().collect();
    #[cfg(debug_assertions)]
    let variables = variables
        .into_iter()
        .chain(std::env::var_os(SOFT_EXECUTOR).map(|words| (SOFT_EXECUTOR, words)))
        .collect();
    variables
}
