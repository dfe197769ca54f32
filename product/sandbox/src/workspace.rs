//! Which host folders a sandbox sees. Everything the user names is resolved here, once, before anything is opened.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::places::Places;

/// A host folder that is mounted at the same path in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Canonical absolute path, on the host and in the guest.
    pub path: PathBuf,
    /// Whether the guest may only read. Enforced on the host.
    pub read_only: bool,
}

/// Folders whose sharing would hide the guest's own, or hand the host's system to it.
const RESERVED: [&str; 12] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/usr",
    "/etc",
    "/boot",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/var/lib/docker",
];

/// Folders that may not be shared themselves, while folders in them may.
const RESERVED_ITSELF: [&str; 5] = ["/", "/home", "/var", "/var/lib", "/tmp"];

/// Turns `FOLDER[:ro]` into a share. A folder whose name itself ends in `:ro` is meant when it exists and the plain one
/// does not. `force` allows the whole home folder.
pub fn resolve(given: &str, places: &Places, force: bool) -> Result<Share> {
    let (path, read_only) = match given.strip_suffix(":ro") {
        Some(folder) if !folder.is_empty() && !Path::new(given).exists() => (folder, true),
        _ => (given.strip_suffix(":rw").filter(|_| !Path::new(given).exists()).unwrap_or(given), false),
    };
    let found = fs::canonicalize(path).map_err(|source| refusal(path, places, &source))?;
    if !found.is_dir() {
        return Err(Error::BadWorkspace {
            path: found,
            why: "is not a folder".into(),
            hint: "give a folder, or nothing for the current one:  viv run shell [FOLDER]".into(),
        });
    }
    check(&found, places, force)?;
    Ok(Share { path: found, read_only })
}

fn refusal(path: &str, places: &Places, source: &std::io::Error) -> Error {
    let why = match source.kind() {
        std::io::ErrorKind::NotFound => "does not exist".into(),
        std::io::ErrorKind::PermissionDenied => "may not be read by you".into(),
        _ => format!("cannot be used: {}", crate::error::in_words(source)),
    };
    Error::BadWorkspace {
        path: places.short(Path::new(path)).into(),
        why,
        hint: "give a folder, or nothing for the current one:  viv run shell [FOLDER]".into(),
    }
}

fn check(path: &Path, places: &Places, force: bool) -> Result<()> {
    let refuse = |why: &str, hint: &str| {
        Err(Error::BadWorkspace { path: path.into(), why: why.into(), hint: hint.into() })
    };
    if path.to_str().is_none() {
        return refuse("is not written in UTF-8 and cannot be shared", "rename the folder");
    }
    if RESERVED_ITSELF.iter().any(|reserved| path == Path::new(reserved)) {
        return refuse("cannot be shared as a whole", "give one project folder:  viv run shell FOLDER");
    }
    if RESERVED.iter().any(|reserved| path.starts_with(reserved)) {
        return refuse(
            "belongs to the system, and the guest has its own",
            "give a project folder:  viv run shell FOLDER",
        );
    }
    let home = fs::canonicalize(&places.home).unwrap_or_else(|_| places.home.clone());
    if !force && home.starts_with(path) {
        return refuse(
            "is or holds your home folder, with everything in it",
            "give a project folder, or --force to share it all the same",
        );
    }
    let own = [&places.state, &places.cache].map(|own| fs::canonicalize(own).unwrap_or_else(|_| own.clone()));
    if own.iter().any(|own| path.starts_with(own)) {
        return refuse("holds Vivarium's own state", "give a project folder:  viv run shell FOLDER");
    }
    Ok(())
}

/// The shares of a sandbox: the workspace first, then the further ones. Nothing twice.
pub fn resolve_all(given: &[String], places: &Places, force: bool) -> Result<Vec<Share>> {
    let here = [".".to_owned()];
    let given = if given.is_empty() { &here[..] } else { given };
    let mut shares: Vec<Share> = Vec::with_capacity(given.len());
    for text in given {
        let share = resolve(text, places, force)?;
        if let Some(known) = shares.iter().find(|known| known.path == share.path) {
            if known.read_only != share.read_only {
                return Err(Error::BadWorkspace {
                    path: share.path,
                    why: "is given twice, once read-only and once not".into(),
                    hint: "give each folder once".into(),
                });
            }
            continue;
        }
        shares.push(share);
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(home: &Path) -> Places {
        Places { state: home.join("state"), cache: home.join("cache"), home: home.into() }
    }

    #[test]
    fn links_are_resolved_and_the_suffix_is_understood() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        let project = home.join("pro:ject");
        fs::create_dir_all(&project).unwrap();
        std::os::unix::fs::symlink(&project, root.path().join("link")).unwrap();
        let given = format!("{}/link:ro", root.path().display());
        let share = resolve(&given, &places(&home), false).unwrap();
        assert_eq!(share, Share { path: fs::canonicalize(&project).unwrap(), read_only: true });

        // A folder that is really called "x:ro".
        fs::create_dir(home.join("x:ro")).unwrap();
        let share = resolve(home.join("x:ro").to_str().unwrap(), &places(&home), false).unwrap();
        assert!(!share.read_only && share.path.ends_with("x:ro"));
    }

    #[test]
    fn the_system_the_home_and_our_own_state_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        fs::create_dir_all(home.join("state/sandboxes")).unwrap();
        let places = places(&home);
        for path in ["/", "/usr", "/usr/share", "/etc", "/proc/self", "/dev", "/sys", "/run", "/tmp"] {
            assert!(resolve(path, &places, false).is_err(), "{path}");
            assert!(resolve(path, &places, true).is_err(), "{path} even with force");
        }
        assert!(resolve(home.to_str().unwrap(), &places, false).is_err());
        assert!(
            resolve(root.path().to_str().unwrap(), &places, false).is_err(),
            "a parent of the home folder"
        );
        assert!(resolve(home.to_str().unwrap(), &places, true).is_ok());
        assert!(resolve(home.join("state/sandboxes").to_str().unwrap(), &places, true).is_err());
        let missing = resolve("/nowhere/at/all", &places, false).unwrap_err();
        assert_eq!(missing.to_string(), "/nowhere/at/all does not exist");
    }

    #[test]
    fn a_folder_given_twice_is_one_share_unless_it_contradicts_itself() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        fs::create_dir_all(&home).unwrap();
        let a = root.path().join("a");
        fs::create_dir(&a).unwrap();
        let a = a.to_str().unwrap();
        let places = places(&home);
        assert_eq!(resolve_all(&[a.into(), format!("{a}/.")], &places, false).unwrap().len(), 1);
        assert!(resolve_all(&[a.into(), format!("{a}:ro")], &places, false).is_err());
    }
}
