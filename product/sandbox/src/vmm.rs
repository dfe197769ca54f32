//! The vmm role: the virtual machine itself, confined before the first guest instruction.
//!
//! It trusts the plan that its shim sends, and nothing that the guest does. All descriptors come with the plan; once it is
//! confined it can open none.

mod build;
mod network;
mod patient;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use machine::{Exit, MachineHandle};

use self::build::Built;
use crate::engine::sentence;
use crate::packet;
use crate::plan::{FromVmm, Plan, Received, ToVmm};

/// The role's whole life. Started with an empty environment and the control socket as standard input.
pub fn main() -> ExitCode {
    // Without its shim it is of no use to anybody.
    let _ = crate::sys::end_with_parent();
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let said = match run(&control) {
        Ok(Exit::PowerOff | Exit::Stopped) => FromVmm::PoweredOff,
        Ok(Exit::Reset) => FromVmm::Reset,
        Ok(Exit::TripleFault) => FromVmm::Failed { why: "the guest's kernel crashed (triple fault)".into() },
        Ok(Exit::Crashed(why)) | Err(why) => FromVmm::Failed { why },
    };
    let well = matches!(said, FromVmm::PoweredOff | FromVmm::Reset);
    let code = if well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let _ = packet::send(&control, &said, &[]);
    code
}

fn run(control: &OwnedFd) -> Result<Exit, String> {
    let (plan, received) = plan(control)?;
    let descriptors = raise_descriptors();
    let waiting = patient::Waiting::new(control.try_clone().map_err(|error| sentence(&error))?);
    let built = build::build(&plan, received, &waiting)?;
    #[cfg(feature = "hostile-hook")]
    crate::hostile::prepare()?;
    let layers = confine(&built.shares, descriptors)?;
    #[cfg(feature = "hostile-hook")]
    crate::hostile::attempt()?;
    packet::send(control, &FromVmm::Confined { layers }, &[]).map_err(|error| sentence(&error))?;
    let Built { machine, vsock, network, .. } = built;
    let handle = machine.handle();
    waiting.set_machine(handle.clone());
    let disks = waiting.clone();
    let ear = control.try_clone().map_err(|error| sentence(&error))?;
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || listen(&ear, &handle, &vsock, network.as_ref(), &disks))
        .map_err(|error| sentence(&error))?;
    Ok(machine.run())
}

/// Lets this process hold as many descriptors as the host allows: the file server keeps one for each file that the guest
/// knows. Returns how many.
fn raise_descriptors() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).ok()?;
    limit.maximum
}

/// Takes everything from this process that running the machine does not need. It has one thread yet.
fn confine(shares: &[(OwnedFd, bool)], most_descriptors: Option<u64>) -> Result<Vec<String>, String> {
    use confine::{Access, Grants, Role};
    let access = |read_only: bool| if read_only { Access::ReadOnly } else { Access::ReadWrite };
    let directories = shares.iter().map(|(folder, read_only)| (folder.as_fd(), access(*read_only))).collect();
    let grants = Grants { directories, most_descriptors, ..Grants::default() };
    let report = confine::confine(Role::Vmm, &grants).map_err(|error| sentence(&error))?;
    Ok(report.layers)
}

fn plan(control: &OwnedFd) -> Result<(Plan, Received), String> {
    match packet::receive::<ToVmm>(control) {
        Ok(Some((ToVmm::Start(plan), descriptors))) => Ok((*plan, Received::new(descriptors))),
        Ok(Some(_)) => Err("the first word was not a plan".into()),
        Ok(None) => Err("the shim is gone".into()),
        Err(error) => Err(sentence(&error)),
    }
}

/// Hears the shim until it is gone, which ends the machine.
fn listen(
    control: &OwnedFd,
    machine: &MachineHandle,
    vsock: &virtio_devices::VsockHost,
    network: Option<&network::Network>,
    disks: &patient::Waiting,
) {
    loop {
        match packet::receive::<ToVmm>(control) {
            Ok(Some((ToVmm::Connect { port }, descriptors))) => {
                // A stream that cannot be connected is closed, which is what its other end sees.
                if let Some(stream) = descriptors.into_iter().next() {
                    vsock.connect(stream, port);
                }
            }
            Ok(Some((ToVmm::Count, _))) => {
                let counters = machine.counters();
                let _ = packet::send(control, &FromVmm::Counted { counters, disks: disks.work() }, &[]);
            }
            Ok(Some((ToVmm::Network, descriptors))) => {
                let linked = network.zip(descriptors.into_iter().next());
                if let Some(Err(why)) = linked.map(|(network, memory)| network.connect(memory)) {
                    tracing::error!(%why, "The network cannot be linked");
                }
            }
            Ok(Some((ToVmm::NetworkDown, _))) => {
                if let Some(network) = network {
                    network.disconnect();
                }
            }
            Ok(Some((ToVmm::Start(_), _))) => {}
            Ok(None) | Err(_) => return machine.stop(),
        }
    }
}
