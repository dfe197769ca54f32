//! The desktop's keychain: GNOME's, the host's own program or Debian's, on a session bus of its own.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use e2e::{Case, Verdict, World, end, ensure, eventually};

use super::program::{NAME, Shell, TOKEN, sandbox};
use crate::Named;

pub(crate) const CASES: &[Named] = &[("values_are_kept_in_the_desktops_keychain", keychain)];

/// The package with both programs, or with all that they need.
const PACKAGE: &str = "gnome-keyring";

/// A bus that lets everybody do everything; who may connect the socket's folder says.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=SOCKET</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"#;

fn tool(program: &str, home: &Path) -> Result<Command, Verdict> {
    let mut command = nested::tool(PACKAGE, program).map_err(|error| Verdict::Skipped(error.to_string()))?;
    command.env_clear().env("HOME", home).env("XDG_RUNTIME_DIR", home).stderr(Stdio::null());
    Ok(command)
}

/// The processes of a session, ended with the case.
#[derive(Default)]
struct Session(Vec<Child>);

impl Drop for Session {
    fn drop(&mut self) {
        while let Some(child) = self.0.pop() {
            end(child);
        }
    }
}

impl Session {
    /// A bus, and a keychain that is open, as after a login.
    fn start(home: &Path, address: &str) -> Result<Self, Verdict> {
        let (settings, socket) = (home.join("bus.conf"), home.join("bus"));
        std::fs::write(&settings, BUS.replace("SOCKET", &socket.display().to_string()))?;
        let mut session = Self::default();
        let mut bus = tool("dbus-daemon", home)?;
        bus.arg("--config-file").arg(&settings).args(["--nofork", "--nopidfile"]).stdin(Stdio::null());
        session.0.push(bus.spawn()?);
        eventually("the bus listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
        let mut keyring = tool("gnome-keyring-daemon", home)?;
        keyring.env("DBUS_SESSION_BUS_ADDRESS", address).args([
            "--foreground",
            "--unlock",
            "--components=secrets",
        ]);
        let mut keyring = keyring.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let password = keyring.stdin.take().map(|mut stdin| stdin.write_all(b"a user's password"));
        session.0.push(keyring);
        password.transpose()?;
        Ok(session)
    }
}

fn keychain(world: &World) -> Case {
    let mut shell = Shell::new(world)?;
    let home = tempfile::tempdir_in("/var/tmp")?;
    let address = format!("unix:path={}", home.path().join("bus").display());
    let session = Session::start(home.path(), &address)?;
    shell.set("DBUS_SESSION_BUS_ADDRESS", address);
    let set = ["secret", "set", "github"];
    let by_name = [&set[..], &["--store", "keychain"]].concat();
    eventually("the keychain answers", || shell.said(&by_name, TOKEN).is_ok_and(|said| said.code == 0))?;
    let said = shell.ok(&set, TOKEN)?;
    ensure(said.err.contains("Kept in the keychain"), format!("{said:?}"))?;
    let listed = shell.listed()?;
    ensure(listed.len() == 1 && listed[0]["kept"] == "keychain", format!("{listed:?}"))?;
    // In no file of ours, encrypted or not; in the keychain's own.
    let files = shell.files()?;
    ensure(
        files.keys().all(|path| !path.ends_with(".age")) && !shell.secrets().join("values").exists(),
        format!("{files:?}"),
    )?;
    shell.has_none_open()?;
    ensure(home.path().join(".local/share/keyrings/login.keyring").exists(), "the keychain has a file")?;
    // A sandbox that is started has the value.
    sandbox(world)?;
    let said = shell.ok(&["start", NAME], "")?;
    ensure(said.err.is_empty(), format!("{said:?}"))?;
    shell.ok(&["rm", "-f", NAME], "")?;
    // Without a keychain nothing is put elsewhere than where it was meant to be, and what is there can be taken from the list.
    drop(session);
    shell.refuses(&by_name, TOKEN, "the keychain cannot be used")?;
    shell.ok(&["secret", "rm", "-f", "github"], "")?;
    ensure(shell.listed()?.is_empty(), "it is gone from the list")
}
