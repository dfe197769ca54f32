//! What sandboxes need of this host, and what of it is missing, each with what would mend it: for `viv diagnose`.
//!
//! Each question may wait for something that does not answer (a dead network file system, a name server): whoever asks
//! must be ready to go on without the answer.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::host;
use crate::images::Images;

/// Something that sandboxes need, or are safer with, and that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What is missing, in one sentence.
    pub what: String,
    /// What would mend it.
    pub mend: String,
}

impl Missing {
    /// From an error; `otherwise` is the next step if the error itself knows none.
    pub fn from_error(error: &Error, otherwise: &str) -> Self {
        Self { what: error.to_string(), mend: error.hint().unwrap_or_else(|| otherwise.to_owned()) }
    }
}

/// Memory for the smallest guest.
pub fn memory() -> Option<Missing> {
    let all = host::memory();
    (all < host::LEAST_MEMORY).then(|| Missing {
        what: format!(
            "A sandbox needs {} MiB of memory, and {} MiB are there",
            host::LEAST_MEMORY >> 20,
            all >> 20
        ),
        mend: "use a host, or a control group, with more memory".into(),
    })
}

/// Landlock: the only layer of confinement that a kernel may lack.
pub fn landlock() -> Option<Missing> {
    confine::landlock().is_none().then(|| Missing {
        what: "The kernel has no Landlock: for files, the file server's own checks stand alone".into(),
        mend: "use Linux 5.13 or newer with landlock in its lsm= list".into(),
    })
}

/// That a folder of ours, which may not be there yet, can be written to. `variable` says where it is.
pub fn folder(path: &Path, variable: &str) -> Option<Missing> {
    let there = path.ancestors().find(|path| path.exists())?;
    let mend = |verb: &str| format!("{verb}, or point {variable} to another folder");
    if !there.is_dir() {
        let what = format!("{} is no folder", there.display());
        return Some(Missing { what, mend: mend("move it away") });
    }
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
        Ok(()) => None,
        Err(error) => {
            let why = crate::error::in_words(&error.into());
            let what = format!("{} cannot be written to: {why}", there.display());
            Some(Missing { what, mend: mend("make it writable for you") })
        }
    }
}

/// Room on the disk for a set-up.
pub fn room(images: &Images<'_>) -> Option<Missing> {
    images.check_room().err().map(|error| Missing::from_error(&error, "free some space"))
}

/// The servers that a set-up downloads from: one question to each, which may take `patience`.
pub fn servers(images: &Images<'_>, patience: Duration) -> Option<Missing> {
    images.check_servers(patience).err().map(|error| Missing {
        what: error.to_string(),
        mend: "check the network; http_proxy and https_proxy, or VIV_DEBIAN_MIRROR and VIV_NPM_REGISTRY, name other ways"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_judged_by_its_nearest_parent_that_is_there() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(folder(&root.path().join("not/yet"), "XDG_X"), None);
        std::fs::write(root.path().join("file"), "").unwrap();
        let missing = folder(&root.path().join("file/below"), "XDG_X").unwrap();
        assert!(missing.what.ends_with("file is no folder") && missing.mend.contains("XDG_X"), "{missing:?}");
        // A file system that not even root can write to.
        let missing = folder(Path::new("/proc/not/there"), "XDG_X");
        assert!(rustix::process::geteuid().is_root() || missing.is_some());
    }
}
