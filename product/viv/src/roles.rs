//! The hidden roles of this program: the shim, the vmm and the gateway. They have their own, fixed command lines and no help.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Mutex;

use sandbox::client::{Announcement, SHIM_ROLE};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::images::Images;
use sandbox::launch::VMM_ROLE;
use sandbox::logs::{BoundedLog, Source};
use sandbox::network::{GATEWAY_ROLE, Handover};
use sandbox::places::Places;
use sandbox::{Error, shim};

use crate::failure::OURS;
use crate::setup::AGENT;

/// Runs a hidden role, if this process was started for one.
pub(crate) fn dispatch() -> Option<ExitCode> {
    let role = role(std::env::args_os().skip(1))?;
    crate::sys::name_process(match role {
        Role::Vmm => c"viv-vmm",
        Role::Shim(_) => c"viv-shim",
        Role::Gateway => c"viv-gateway",
    });
    Some(match role {
        Role::Vmm => {
            start_vmm_log();
            sandbox::vmm::main()
        }
        Role::Gateway => {
            start_vmm_log();
            sandbox::network::keeper::main()
        }
        Role::Shim(id) => run_shim(&id),
    })
}

/// A hidden role and what it is given.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Vmm,
    Shim(String),
    Gateway,
}

/// The role that these arguments ask for. They may be any bytes: most are a user's.
fn role(mut arguments: impl Iterator<Item = OsString>) -> Option<Role> {
    let (role, first, rest) = (arguments.next()?, arguments.next(), arguments.next());
    match (role.to_str()?, first, rest) {
        (VMM_ROLE, None, None) => Some(Role::Vmm),
        (GATEWAY_ROLE, None, None) => Some(Role::Gateway),
        (SHIM_ROLE, Some(id), None) => Some(Role::Shim(id.into_string().ok()?)),
        _ => None,
    }
}

/// What goes wrong in a vmm or a gateway is written to its standard error, which its shim keeps, bounded, as `vmm.log` and `gateway.log`.
fn start_vmm_log() {
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .without_time()
        .with_writer(std::io::stderr)
        .try_init();
}

/// The announcement to the client that waits for it; that client may be gone.
fn announce(announcement: &Announcement) {
    let mut line = serde_json::to_vec(announcement).unwrap_or_default();
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

fn run_shim(id: &str) -> ExitCode {
    // Out of the client's terminal: its Ctrl-C and its end are not ours.
    let _ = rustix::process::setsid();
    let outcome = (|| {
        // Nothing of it is anywhere but in this process.
        let handover = Handover::read(std::io::stdin())
            .map_err(|error| Error::host("cannot understand who started it", error))?;
        let places = Places::from_env()?;
        let sandbox = Sandboxes::open(&places)?.by_id(id)?;
        start_log(&sandbox);
        let Some(lock) = shim::take(&sandbox)? else {
            announce(&Announcement::Busy);
            return Ok(());
        };
        // As it is now that nobody else may change it.
        let sandbox = Sandboxes::open(&places)?.by_id(id)?;
        let (terminate, handler) =
            UnixStream::pair().map_err(|error| Error::host("cannot make a socket", error))?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, handler)
            .map_err(|error| Error::host("cannot handle signals", error))?;
        let machine = || {
            let assets = Images::open(&places, AGENT)?.assets(&sandbox.spec.image)?;
            sandbox::assemble::machine(&sandbox, &places, &assets, handover)
        };
        shim::run(&sandbox, lock, machine, || announce(&Announcement::Listening), terminate)
    })();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "The sandbox could not be run");
            let hint = error.hint();
            let why = match error {
                Error::NotStarted { why, .. } => why,
                other => other.to_string(),
            };
            announce(&Announcement::Failed { why, hint });
            ExitCode::from(OURS)
        }
    }
}

/// The shim's own log, in the sandbox's folder; panics are noted there too.
fn start_log(sandbox: &Sandbox) {
    use tracing_subscriber::EnvFilter;
    let Ok(log) = BoundedLog::open(&sandbox.log(Source::Shim)) else { return };
    let filter =
        std::env::var("VIV_LOG").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "info".into());
    let started = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(false)
        .with_writer(Mutex::new(log))
        .try_init();
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "The shim panicked")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn any_bytes_may_be_arguments() {
        let of = |words: &[&[u8]]| {
            role(words.iter().map(|word| OsString::from_vec(word.to_vec())).collect::<Vec<_>>().into_iter())
        };
        assert_eq!(of(&[b"exec", b"box", b"\xff"]), None);
        assert_eq!(of(&[b"\xff"]), None);
        assert_eq!(of(&[b"shim", b"\xff"]), None);
        assert_eq!(of(&[b"shim", b"0123"]), Some(Role::Shim("0123".into())));
        assert_eq!(of(&[b"vmm"]), Some(Role::Vmm));
        assert_eq!(of(&[b"gateway"]), Some(Role::Gateway));
        assert_eq!(of(&[b"gateway", b"x"]), None);
    }
}
