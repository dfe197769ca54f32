//! Programs of others that cases run: fetched once, before the namespace is entered, and kept in the cache.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use e2e::Verdict;

/// Debian's `docker-registry`: the host's, or one that is fetched with its libraries.
pub fn registry_program() -> Result<Command, Verdict> {
    nested::tool("docker-registry", "docker-registry").map_err(|error| Verdict::Skipped(error.to_string()))
}

/// Google's gRPC for the guest's Python, from PyPI.
const GRPC: &str = "grpcio==1.85.1";
/// AWS's own client.
const AWS: &str = "boto3==1.44.5";
/// The guest's Python and C library.
const GUEST: [&str; 6] =
    ["--python-version", "3.13", "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"];

/// The folder with gRPC for the guest's `PYTHONPATH`.
pub fn grpc_library() -> Result<PathBuf, Verdict> {
    library(GRPC)
}

/// The folder with AWS's client for the guest's `PYTHONPATH`.
pub fn aws_library() -> Result<PathBuf, Verdict> {
    library(AWS)
}

fn library(requirement: &str) -> Result<PathBuf, Verdict> {
    let cache = e2e::cache_home().join("vivarium/test");
    let folder = cache.join(requirement.replace("==", "-"));
    if folder.is_dir() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&cache)?;
    let fresh = tempfile::Builder::new().prefix("python").tempdir_in(&cache)?;
    let venv = fresh.path().join("venv");
    let library = fresh.path().join("library");
    succeeds(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut install = Command::new(venv.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    succeeds(install.args(GUEST).arg("--target").arg(&library).arg(requirement))?;
    std::fs::rename(&library, &folder)?;
    Ok(folder)
}

fn succeeds(command: &mut Command) -> Result<(), Verdict> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| Verdict::Skipped(format!("{shown}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Verdict::Skipped(format!("{shown}: {said}")))
}
