//! The guest agent: PID 1 of a sandbox.
//!
//! It is the only program of ours inside the guest. It puts the root file system together from the read-only base and the sandbox's
//! disk, holds Docker's socket from the start and keeps dockerd running behind it, and starts processes for the host over vsock. It trusts the kernel and
//! the host; what runs inside the guest may do to it what root may do, and nothing of the host's safety rests on it.
//!
//! Static, few dependencies, threads instead of an executor: one reader and one pump per session, both asleep when nothing happens.
#![expect(
    unsafe_code,
    reason = "pre_exec closures and a few system calls that rustix has no safe form of; all in spawn.rs and sys.rs"
)]

mod boot;
mod cgroup;
mod cmdline;
mod console;
mod control;
mod devices;
mod docker;
mod fail;
mod identity;
mod journal;
mod metrics;
mod mounts;
mod network;
mod oci;
mod power;
mod pump;
mod reaper;
mod root;
mod rtnetlink;
mod script;
mod server;
mod session;
mod shares;
mod shutdown;
mod spawn;
mod ssh;
mod status;
mod sys;
mod trust;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        boot::init()
    }
    let mut arguments = std::env::args_os();
    if oci::is_meant(arguments.next().as_ref()) {
        return oci::run(arguments);
    }
    let arguments: Vec<_> = arguments.collect();
    if let Some(code) = ssh::command(arguments.iter().cloned()) {
        return code;
    }
    if let Some(code) = power::command(arguments.into_iter()) {
        return code;
    }
    eprintln!(
        "viv-agent {} is the first process of a sandbox; it does nothing elsewhere",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::from(125)
}
