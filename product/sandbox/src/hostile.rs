//! A hook for the test of the vmm's confinement: with the feature `hostile-hook`, which no release can be built with, a
//! vmm that has just confined itself makes the attempt that `VIV_HOSTILE` names (`NAME FOLDER`), instead of running its guest.

use std::ffi::OsString;

/// The variable that names the attempt.
#[cfg(feature = "hostile-hook")]
const VARIABLE: &str = "VIV_HOSTILE";

/// What to pass on to the shim and the vmm, whose environments are empty otherwise.
#[cfg(feature = "hostile-hook")]
pub(crate) fn variable() -> Option<(&'static str, OsString)> {
    std::env::var_os(VARIABLE).map(|value| (VARIABLE, value))
}

/// What to pass on: nothing.
#[cfg(not(feature = "hostile-hook"))]
pub(crate) fn variable() -> Option<(&'static str, OsString)> {
    None
}

/// Opens what the attempt needs. Must be called before the process is confined.
#[cfg(feature = "hostile-hook")]
pub(crate) fn prepare() -> Result<(), String> {
    let Some(asked) = std::env::var_os(VARIABLE) else { return Ok(()) };
    confine::hostile::prepare(&asked.to_string_lossy()).map_err(|error| format!("hostile: {error}"))
}

/// Makes the attempt, if one is asked for, and says what came of it. May not return.
#[cfg(feature = "hostile-hook")]
pub(crate) fn attempt() -> Result<(), String> {
    let Some(name) = confine::hostile::prepared() else { return Ok(()) };
    // The log shows that the process was alive and confined when it made the attempt.
    eprintln!("hostile: confined, trying {name}");
    match confine::hostile::attempt() {
        Ok(()) => Err(format!("hostile: {name} BROKE OUT")),
        Err(error) => Err(format!("hostile: {name} was refused with {:?}", error.raw_os_error())),
    }
}
