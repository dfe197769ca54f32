//! `runc` in front of runc: what dockerd starts to make a container or a build step's sandbox, so that it trusts what the guest trusts.
//!
//! This program under the name `runc` stands first on dockerd's `PATH`. It adds to the container's description mounts of the guest's
//! certificates, below `/dev` (a file system of the container's own: a mount elsewhere leaves an empty file in the image's layer), and the variables by which
//! programs are pointed to them; what the container says itself stays. Then it becomes the real runc, also when it could not add anything: a container that does
//! not trust us is better than none. It never writes to its error stream, which may be the container's.

mod arguments;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Map, Value, json};

use crate::trust::{self, BUNDLE, ROOTS};
use arguments::Edit;

/// Where dockerd finds it.
pub(crate) const FOLDER: &str = "/run/vivarium/bin";
/// The program's name there.
const NAME: &str = "runc";
/// The most bytes of a description that is read. Docker's have some ten thousand.
const LIMIT: u64 = 16 << 20;
/// Where the certificates are in a container.
const INSIDE: &str = "/dev/vivarium";
/// A configuration for apt, which goes by no variable of OpenSSL's in most releases.
const APT: &str = "/run/vivarium/apt.conf";

/// What is mounted, and its name in [`INSIDE`].
const MOUNTS: [(&str, &str); 3] = [(BUNDLE, "ca-certificates.crt"), (ROOTS, "roots.pem"), (APT, "apt.conf")];
/// The variables and the files that they name.
const VARIABLES: [(&str, &str); 11] = [
    ("SSL_CERT_FILE", "ca-certificates.crt"),
    ("CURL_CA_BUNDLE", "ca-certificates.crt"),
    ("REQUESTS_CA_BUNDLE", "ca-certificates.crt"),
    ("PIP_CERT", "ca-certificates.crt"),
    ("GIT_SSL_CAINFO", "ca-certificates.crt"),
    ("CARGO_HTTP_CAINFO", "ca-certificates.crt"),
    ("AWS_CA_BUNDLE", "ca-certificates.crt"),
    ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "ca-certificates.crt"),
    ("NODE_EXTRA_CA_CERTS", "roots.pem"),
    ("DENO_CERT", "roots.pem"),
    ("APT_CONFIG", "apt.conf"),
];

/// Whether this program was started as runc.
pub(crate) fn is_meant(name: Option<&OsString>) -> bool {
    name.is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == NAME))
}

/// Puts it where dockerd looks first.
pub(crate) fn offer() -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    fs::write(APT, format!("Acquire::https::CAInfo \"{INSIDE}/ca-certificates.crt\";\n"))?;
    match symlink("/proc/1/exe", Path::new(FOLDER).join(NAME)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Adds what is to be added and becomes runc. Returns only if there is none.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    if trust::is_given()
        && let Some(edit) = arguments::find(&arguments)
    {
        // See above: without it, it is a container as any other.
        let _ = apply(&edit);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let Some(real) = behind(&path) else {
        eprintln!("runc: not found");
        return ExitCode::from(127);
    };
    let error = Command::new(&real).arg0(NAME).args(arguments).exec();
    eprintln!("{}: {error}", real.display());
    ExitCode::from(126)
}

/// The first runc on the path that is another program than this one.
fn behind(path: &OsString) -> Option<PathBuf> {
    let own = fs::metadata("/proc/self/exe").ok()?;
    std::env::split_paths(path).map(|folder| folder.join(NAME)).find(|candidate| {
        fs::metadata(candidate).is_ok_and(|found| {
            let same = (found.dev(), found.ino()) == (own.dev(), own.ino());
            found.is_file() && found.mode() & 0o111 != 0 && !same
        })
    })
}

/// `None` when it was left as it is.
fn apply(edit: &Edit) -> Option<()> {
    match edit {
        Edit::Container { bundle } => rewrite(&bundle.join("config.json"), add_to_container),
        Edit::Process { file, state } => {
            // Only where the certificates were mounted when the container was made.
            let state = read(state)?;
            let has = state.windows(INSIDE.len()).any(|bytes| bytes == INSIDE.as_bytes());
            has.then(|| rewrite(file, add_to_process))?
        }
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LIMIT.saturating_add(1)).read_to_end(&mut bytes).ok()?;
    (u64::try_from(bytes.len()).ok()? <= LIMIT).then_some(bytes)
}

/// Writes the file anew, with its mode, when `change` says that there is something new in it.
fn rewrite(path: &Path, change: fn(&mut Value) -> Option<()>) -> Option<()> {
    let mut value: Value = serde_json::from_slice(&read(path)?).ok()?;
    change(&mut value)?;
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    trust::replace(path, &serde_json::to_vec(&value).ok()?, mode).ok()
}

/// Adds the mounts and variables to a container's description (OCI runtime specification, config.md).
fn add_to_container(config: &mut Value) -> Option<()> {
    let mounts = config.get_mut("mounts")?.as_array_mut()?;
    let destination = |mount: &Value| {
        let path = mount.get("destination").and_then(Value::as_str).unwrap_or_default();
        path.trim_end_matches('/').to_owned()
    };
    // In any other `/dev` the mount points would stay behind, or could not be made.
    let dev = mounts.iter().rfind(|mount| destination(mount) == "/dev")?;
    let own = dev.get("type").and_then(Value::as_str) == Some("tmpfs");
    if !own || mounts.iter().any(|mount| Path::new(&destination(mount)).starts_with(INSIDE)) {
        return None;
    }
    for (source, name) in MOUNTS {
        mounts.push(json!({
            "destination": format!("{INSIDE}/{name}"),
            "type": "bind",
            "source": source,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        }));
    }
    add_to_process(config.get_mut("process")?)
}

/// Adds the variables that a process has not set itself.
fn add_to_process(process: &mut Value) -> Option<()> {
    let process: &mut Map<String, Value> = process.as_object_mut()?;
    let variables = process.entry("env").or_insert_with(|| json!([]));
    if variables.is_null() {
        *variables = json!([]);
    }
    let variables = variables.as_array_mut()?;
    for (name, file) in VARIABLES {
        let set = |variable: &Value| {
            variable.as_str().and_then(|text| text.split_once('=')).is_some_and(|(own, _)| own == name)
        };
        if !variables.iter().any(set) {
            variables.push(format!("{name}={INSIDE}/{file}").into());
        }
    }
    Some(())
}

#[cfg(test)]
mod tests;
