//! `poweroff`, `reboot`, `halt` and `shutdown` in the guest: this program under another name asks the first process to go
//! down in order, as the host does. There is no other init here that would.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::ProtoError;
use agent_proto::client::Control;

use crate::boot::Agent;
use crate::console::log;
use crate::fail::without_number;
use crate::server;

/// Where the agent listens for the guest's own root.
const SOCKET: &str = "/run/vivarium/agent.sock";
/// Their names, each with whether it means a reset.
const NAMES: [(&str, bool); 4] =
    [("poweroff", false), ("halt", false), ("shutdown", false), ("reboot", true)];
/// Where the commands are.
const FOLDER: &str = "/usr/local/sbin";
/// What runs gets to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Acts as one of the commands if its name is the first argument.
pub(crate) fn command(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let wanted = arguments.next()?;
    let (name, reset) = NAMES.into_iter().find(|(name, _)| wanted == *name)?;
    let reset = reset || (name == "shutdown" && arguments.any(|word| word == "-r" || word == "--reboot"));
    let asked = UnixStream::connect(SOCKET).map_err(ProtoError::from).and_then(|stream| {
        let mut control = Control::connect(stream)?;
        if reset { control.reboot(PATIENCE) } else { control.shutdown(PATIENCE) }
    });
    Some(match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", without_number(&error.to_string()));
            ExitCode::FAILURE
        }
    })
}

/// The command's file. Who may become root need not say so.
fn script(name: &str) -> String {
    format!(
        "#!/bin/sh\n# Made by viv-agent.\n[ \"$(id -u)\" = 0 ] || exec sudo -n \"$0\" \"$@\"\nexec /proc/1/exe {name} \"$@\"\n"
    )
}

/// Gives the commands their names and listens for them. Without them a sandbox is as good: only said in the log.
pub(crate) fn offer(agent: &Arc<Agent>) {
    if let Err(e) = try_offer(agent) {
        log(format_args!("poweroff and reboot are not there: {e}"));
    }
}

fn try_offer(agent: &Arc<Agent>) -> io::Result<()> {
    std::fs::create_dir_all("/run/vivarium")?;
    let listener = UnixListener::bind(SOCKET)?;
    // Root could end us all in other ways; nobody else gets here.
    std::fs::set_permissions(SOCKET, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let agent = Arc::clone(agent);
    let serve = move || {
        for stream in listener.incoming().flatten() {
            let agent = Arc::clone(&agent);
            let one = move || server::serve(&agent, &stream);
            let _ = std::thread::Builder::new().name("power".into()).spawn(one);
        }
    };
    std::thread::Builder::new().name("power".into()).spawn(serve)?;
    std::fs::create_dir_all(FOLDER)?;
    for (name, _) in NAMES {
        let path = Path::new(FOLDER).join(name);
        // What somebody else has put there stays.
        match std::fs::File::options().write(true).create_new(true).mode(0o755).open(path) {
            Ok(mut file) => file.write_all(script(name).as_bytes())?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
