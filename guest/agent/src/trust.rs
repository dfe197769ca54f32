//! What the guest trusts besides its own roots: our root, so that the gateway may look into a connection, and the host's extra ones, whose
//! proxies sign anew what passes.
//!
//! Everything is laid out as `update-ca-certificates` does it, which takes seconds where this takes a millisecond, and which may run at any time
//! later without losing ours: a file of each certificate for the local administrator's, its link and its hashed link for OpenSSL, its text in the
//! bundle. Programs that bring roots of their own are pointed to ours by variables (see [`variables`]).

mod certificate;
mod files;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use agent_proto::messages::Trust;

use crate::console::log;
use crate::fail::{Doing, Failure, Outcome};
use crate::reaper::Reaper;

use certificate::Certificate;

/// Our certificates alone, for what adds them to roots of its own. There exactly while the guest has been given some.
pub(crate) const ROOTS: &str = "/run/vivarium/roots.pem";
/// All that the guest trusts.
pub(crate) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Debian's hook that brings Java's key store up to date. It reads `+FILE` and `-FILE`.
const JAVA_HOOK: &str = "/etc/ca-certificates/update.d/jks-keystore";
const JAVA_STORE: &str = "/etc/ssl/certs/java/cacerts";

/// The variables by which programs that bring roots of their own are told of others: the first two add them, the rest go by them alone.
const POINTERS: [(&str, &str); 6] = [
    ("NODE_EXTRA_CA_CERTS", ROOTS),
    ("DENO_CERT", ROOTS),
    // Python's httpx, and everything with an OpenSSL that was built for other folders.
    ("SSL_CERT_FILE", BUNDLE),
    ("REQUESTS_CA_BUNDLE", BUNDLE),
    ("AWS_CA_BUNDLE", BUNDLE),
    // gRPC's C core, which Python, Ruby and PHP have; it looks nowhere else.
    ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", BUNDLE),
];

/// Only one change at a time.
static CHANGING: Mutex<()> = Mutex::new(());

/// Whether the guest has been given certificates.
pub(crate) fn is_given() -> bool {
    Path::new(ROOTS).exists()
}

/// The variables that sessions need for what is trusted now.
pub(crate) fn variables() -> &'static [(&'static str, &'static str)] {
    if is_given() { &POINTERS } else { &[] }
}

/// Writes a file whole or not at all, with this mode; who reads it meanwhile has the old one.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    // Through a link to where the file really is.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".viv-new");
    let new = path.with_file_name(name);
    // Left by one that was killed.
    let _ = fs::remove_file(&new);
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    fs::rename(&new, path)
}

/// Makes the guest trust these certificates besides its own, instead of those that it was given before.
pub(crate) fn set(trust: &Trust, reaper: &Arc<Reaper>) -> Outcome {
    trust.check().map_err(Failure::new)?;
    let mut wanted: Vec<Certificate> = Vec::new();
    for (number, der) in trust.certificates.iter().enumerate() {
        let certificate = Certificate::parse(der)
            .ok_or_else(|| Failure::new(format!("Certificate {} is none", number.saturating_add(1))))?;
        if !wanted.contains(&certificate) {
            wanted.push(certificate);
        }
    }
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let changes = files::install(Path::new("/"), &wanted)?;
    write_roots(&wanted)?;
    if !wanted.is_empty() {
        let _ = keep_through_sudo();
    }
    if !changes.is_empty() && Path::new(JAVA_STORE).exists() && Path::new(JAVA_HOOK).exists() {
        update_java(changes, Arc::clone(reaper));
    }
    Ok(())
}

fn write_roots(wanted: &[Certificate]) -> Outcome {
    if wanted.is_empty() {
        // Not there from before.
        let _ = fs::remove_file(ROOTS);
        return Ok(());
    }
    let text: String = wanted.iter().map(Certificate::pem).collect();
    replace(Path::new(ROOTS), text.as_bytes(), 0o644).doing("Cannot write our roots")
}

/// `sudo` drops variables that it does not know; with these dropped, Node.js as root would not trust what it does as the user.
fn keep_through_sudo() -> std::io::Result<()> {
    const FILE: &str = "/etc/sudoers.d/vivarium";
    if Path::new(FILE).exists() || !Path::new("/etc/sudoers.d").is_dir() {
        return Ok(());
    }
    let names: Vec<&str> = POINTERS.iter().map(|(name, _)| *name).collect();
    replace(Path::new(FILE), format!("Defaults env_keep += \"{}\"\n", names.join(" ")).as_bytes(), 0o440)
}

/// Lets Debian's hook change Java's key store, beside everything else: it starts a Java machine for that.
fn update_java(changes: files::Changes, reaper: Arc<Reaper>) {
    let work = move || {
        let mut lines = String::new();
        for (sign, paths) in [('+', changes.added), ('-', changes.removed)] {
            for path in paths {
                lines.push_str(&format!("{sign}{}\n", path.display()));
            }
        }
        if let Err(e) = run_hook(&lines, &reaper) {
            log(format_args!("{JAVA_HOOK}: {e}"));
        }
    };
    if let Err(e) = std::thread::Builder::new().name("java".into()).spawn(work) {
        log(format_args!("{JAVA_HOOK}: {e}"));
    }
}

fn run_hook(lines: &str, reaper: &Arc<Reaper>) -> std::io::Result<()> {
    let (input, mut ours) = std::io::pipe()?;
    let mut command = Command::new(JAVA_HOOK);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = reaper.spawn(&mut command)?;
    drop(command);
    // A few hundred bytes: the pipe has room for them.
    ours.write_all(lines.as_bytes())?;
    drop(ours);
    log(format_args!("Java's key store: {:?}", child.wait()));
    Ok(())
}

/// The folder of the local administrator's certificates, below `root`.
fn local_folder(root: &Path) -> PathBuf {
    root.join("usr/local/share/ca-certificates")
}
