//! Which host folders a sandbox sees. What the user names is resolved here once, when it is named; at each start the folder
//! at that path is opened without following any link, and must be the same one.
//!
//! A guest makes and renames what it likes in a writable share, links to anywhere on the host among it. So no path of a
//! share may be believed twice, and no share may lie in a place that a guest of the same sandbox can change.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::places::Places;

/// A host folder that is mounted at the same path in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Share {
    /// Canonical absolute path, on the host and in the guest.
    pub path: PathBuf,
    /// Whether the guest may only read. Enforced on the host.
    pub read_only: bool,
    /// Which folder was at the path when the user named it; none in the files of the first versions.
    pub identity: Option<Identity>,
}

/// A share as JSON has it.
#[derive(Serialize, Deserialize)]
struct Written {
    /// For people where the bytes are not UTF-8; then the next one counts.
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    read_only: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<Identity>,
}

impl From<Share> for Written {
    fn from(share: Share) -> Self {
        let path = share.path.to_string_lossy().into_owned();
        let path_b64 = exact(share.path.as_os_str());
        Self { path, path_b64, read_only: share.read_only, identity: share.identity }
    }
}

impl TryFrom<Written> for Share {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let path = match written.path_b64 {
            None => written.path.into(),
            Some(text) => {
                let bytes = BASE64.decode(text).map_err(|error| format!("path_b64: {error}"))?;
                OsString::from_vec(bytes).into()
            }
        };
        Ok(Self { path, read_only: written.read_only, identity: written.identity })
    }
}

/// The exact bytes in Base64 (RFC 4648), for JSON, where text cannot tell them: those that are not UTF-8.
pub fn exact(text: &OsStr) -> Option<String> {
    text.to_str().is_none().then(|| BASE64.encode(text.as_bytes()))
}

/// Which folder a path led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The file system's device number.
    pub device: u64,
    /// The folder's inode number.
    pub inode: u64,
}

impl Share {
    /// Whether both are the same path with the same rights, whatever folder is there.
    pub fn is_like(&self, other: &Self) -> bool {
        self.path == other.path && self.read_only == other.read_only
    }

    /// Where it is in the guest: at the same path, but for the host's whole tree, whose place the guest's own has.
    pub fn guest_path(&self) -> &Path {
        if self.path == Path::new("/") { Path::new(WHOLE_HOST) } else { &self.path }
    }
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
const RESERVED_ITSELF: [&str; 4] = ["/home", "/var", "/var/lib", "/tmp"];

/// Where the guest sees the host's whole tree.
const WHOLE_HOST: &str = "/host";

/// Turns `FOLDER[:ro]` or `FOLDER[:rw]` into a share. `force` allows the whole home folder, and the whole host.
///
/// # Errors
/// [`Error::BadWorkspace`], also where a folder is there whose name itself ends in what was put behind it: neither reading is
/// guessed at, as one of them may be written to and the other not.
pub fn resolve(given: &OsStr, places: &Places, force: bool) -> Result<Share> {
    let (path, read_only) = read(given)?;
    let found = fs::canonicalize(path).map_err(|source| refusal(path, places, &source))?;
    if !found.is_dir() {
        return Err(Error::BadWorkspace {
            path: found,
            why: "is not a folder".into(),
            hint: "give a folder, or nothing for the current one:  viv run shell [FOLDER]".into(),
        });
    }
    check(&found, places, force)?;
    let (_, identity) = open_plain(&found)?;
    Ok(Share { path: found, read_only, identity: Some(identity) })
}

/// The folder that is named and whether it may only be read. A slash tells a name from what is put behind it: `x/:ro` is `x`, to be
/// read only, and `x:ro/` is the folder of that name.
fn read(given: &OsStr) -> Result<(&OsStr, bool)> {
    let without = |suffix: &str| {
        let rest = given.as_bytes().strip_suffix(suffix.as_bytes())?;
        (!rest.is_empty()).then(|| OsStr::from_bytes(rest))
    };
    let (folder, suffix, how) = match (without(":ro"), without(":rw")) {
        (Some(folder), _) => (folder, ":ro", ", only to be read"),
        (None, Some(folder)) => (folder, ":rw", ""),
        (None, None) => return Ok((given, false)),
    };
    if Path::new(given).is_dir() {
        let (plain, given) = (folder.to_string_lossy(), Path::new(given));
        // Another slash would tell nothing of a folder whose whole name is the suffix.
        let end = if plain.ends_with('/') { "." } else { "/" };
        return Err(Error::BadWorkspace {
            path: given.into(),
            why: format!(
                "can be read in two ways: a folder of that very name is there, and {suffix} has a meaning of its own"
            ),
            hint: format!(
                "{plain}{end}{suffix} is the folder {plain}{how}; {}/ is the folder of that name",
                given.display()
            ),
        });
    }
    Ok((folder, suffix == ":ro"))
}

/// Opens the shares of a sandbox that starts, in their order, with `O_PATH`. All that was checked when they were named is
/// checked again. `name` is the sandbox's, for the next step that is told.
///
/// # Errors
/// [`Error::BadWorkspace`] when a path is gone or leads through a link now, when another folder is there, or when the
/// folder may not be shared.
pub fn open_all(shares: &[Share], places: &Places, name: &str) -> Result<Vec<OwnedFd>> {
    check_overlaps(shares)?;
    shares.iter().map(|share| open(share, places, name)).collect()
}

fn open(share: &Share, places: &Places, name: &str) -> Result<OwnedFd> {
    // Whether the whole home may be shared was decided when the sandbox was made.
    check(&share.path, places, true)?;
    let (folder, identity) = open_plain(&share.path)?;
    match share.identity {
        Some(known) if known != identity => Err(Error::BadWorkspace {
            path: share.path.clone(),
            why: format!("is another folder than the one that {name} was made with"),
            hint: "viv run with this folder takes the one that is there now; viv rm deletes the sandbox"
                .into(),
        }),
        _ => Ok(folder),
    }
}

/// Opens a canonical path; a link anywhere in it is refused.
fn open_plain(path: &Path) -> Result<(OwnedFd, Identity)> {
    let refuse = |why: String, hint: &str| Error::BadWorkspace { path: path.into(), why, hint: hint.into() };
    let folder = crate::sys::open_plain_to_name(path).map_err(|error| match error {
        rustix::io::Errno::LOOP => refuse(
            "leads through a symbolic link now and is not followed: a guest may have made it".into(),
            "look at it before anything else; put the folder back, or delete the sandbox with viv rm",
        ),
        error => refuse(
            format!("cannot be shared: {}", crate::error::in_words(&error.into())),
            "make it again, or delete the sandbox with viv rm",
        ),
    })?;
    let folder = File::from(folder);
    let stat = folder.metadata().map_err(|error| Error::file("cannot examine", path, error))?;
    Ok((folder.into(), Identity { device: stat.dev(), inode: stat.ino() }))
}

fn refusal(path: &OsStr, places: &Places, source: &std::io::Error) -> Error {
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
    if RESERVED_ITSELF.iter().any(|reserved| path == Path::new(reserved)) {
        return refuse("cannot be shared as a whole", "give one project folder:  viv run shell FOLDER");
    }
    if RESERVED.iter().any(|reserved| path.starts_with(reserved)) {
        return refuse(
            "belongs to the system, and the guest has its own",
            "give a project folder:  viv run shell FOLDER",
        );
    }
    if path == Path::new("/") && !force {
        return refuse(
            "is the whole host",
            "give a project folder, or --force to share everything all the same, in the guest as /host",
        );
    }
    let home = fs::canonicalize(&places.home).unwrap_or_else(|_| places.home.clone());
    if !force && home.starts_with(path) {
        return refuse(
            "is or holds your home folder, with everything in it",
            "give a project folder, or --force to share it all the same",
        );
    }
    // Who shares the whole home gives the account away, which --force says; short of that, no guest gets at the files
    // from which this and every other sandbox is started.
    let is_home = home.starts_with(path);
    let own = [&places.state, &places.cache, &places.config].map(|own| resolved(own));
    if own.iter().any(|own| path.starts_with(own) || (own.starts_with(path) && !is_home)) {
        return refuse("holds Vivarium's own state", "give a project folder:  viv run shell FOLDER");
    }
    Ok(())
}

/// A path without links, as far as it exists yet.
fn resolved(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|there| {
        let rest = path.strip_prefix(there).ok()?;
        Some(fs::canonicalize(there).ok()?.join(rest))
    });
    found.unwrap_or_else(|| path.to_owned())
}

/// Refuses a share that lies in a writable one: the guest could write a read-only one through the other, and change what
/// its path leads to.
pub fn check_overlaps(shares: &[Share]) -> Result<()> {
    for inner in shares {
        let beneath = |outer: &&Share| {
            !outer.read_only && outer.path != inner.path && inner.path.starts_with(&outer.path)
        };
        if let Some(outer) = shares.iter().find(beneath) {
            let hint = if inner.read_only {
                format!("share {} with :ro as well, or leave the inner folder out", outer.path.display())
            } else {
                "leave it out: it is shared with the folder around it".into()
            };
            return Err(Error::BadWorkspace {
                path: inner.path.clone(),
                why: format!(
                    "lies in {}, which the sandbox may write, and cannot be a share of its own",
                    outer.path.display()
                ),
                hint,
            });
        }
    }
    Ok(())
}

/// The shares of a sandbox: the workspace first, then the further ones. Nothing twice.
pub fn resolve_all(given: &[OsString], places: &Places, force: bool) -> Result<Vec<Share>> {
    let here = [OsString::from(".")];
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
    check_overlaps(&shares)?;
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(home: &Path) -> Places {
        Places {
            state: home.join("state"),
            cache: home.join("cache"),
            config: home.join("config"),
            home: home.into(),
        }
    }

    #[test]
    fn links_are_resolved_and_the_suffix_is_understood() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        let project = home.join("pro:ject");
        fs::create_dir_all(&project).unwrap();
        std::os::unix::fs::symlink(&project, root.path().join("link")).unwrap();
        let given = format!("{}/link:ro", root.path().display());
        let share = resolve(given.as_ref(), &places(&home), false).unwrap();
        assert!(share.read_only);
        assert_eq!(share.path, fs::canonicalize(&project).unwrap());
        let given = format!("{}/link:rw", root.path().display());
        assert!(!resolve(given.as_ref(), &places(&home), false).unwrap().read_only);
    }

    #[test]
    fn a_folder_whose_name_ends_as_the_suffix_is_not_guessed_at() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        let places = places(&root.join("home"));
        for suffix in [":ro", ":rw"] {
            let (plain, odd) = (root.join("x"), root.join(format!("x{suffix}")));
            fs::create_dir(&odd).unwrap();
            // Nor where the plain one is not there: it may have been, when the user last looked.
            for _ in 0..2 {
                let error = resolve(odd.as_os_str(), &places, false).unwrap_err();
                assert!(error.to_string().contains("in two ways"), "{error}");
                // Both as the hint has them.
                let hint = error.hint().unwrap();
                let (plainly, oddly) =
                    (format!("{}/{suffix}", plain.display()), format!("{}/", odd.display()));
                assert!(hint.contains(&plainly) && hint.contains(&oddly), "{hint}");
                let share = resolve(oddly.as_ref(), &places, false).unwrap();
                assert!(!share.read_only && share.path == odd);
                let share = resolve(format!("{oddly}:ro").as_ref(), &places, false).unwrap();
                assert!(share.read_only && share.path == odd);
                fs::create_dir_all(&plain).unwrap();
                let share = resolve(plainly.as_ref(), &places, false).unwrap();
                assert!(share.read_only == (suffix == ":ro") && share.path == plain);
            }
            fs::remove_dir(&odd).unwrap();
            // A file of that name can be no workspace.
            fs::write(&odd, "").unwrap();
            assert_eq!(resolve(odd.as_os_str(), &places, false).unwrap().path, plain);
            fs::create_dir(plain.join(suffix)).unwrap();
            let given = format!("{}/{suffix}", plain.display());
            let hint = resolve(given.as_ref(), &places, false).unwrap_err().hint().unwrap();
            let plainly = format!("{}/.{suffix}", plain.display());
            assert!(hint.starts_with(&plainly), "{hint}");
            assert_eq!(resolve(plainly.as_ref(), &places, false).unwrap().path, plain);
            fs::remove_dir_all(&plain).unwrap();
        }
    }

    #[test]
    fn the_system_the_home_and_our_own_state_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        fs::create_dir_all(home.join("state/sandboxes")).unwrap();
        let places = places(&home);
        for path in ["/usr", "/usr/share", "/etc", "/proc/self", "/dev", "/sys", "/run", "/tmp"] {
            assert!(resolve(path.as_ref(), &places, false).is_err(), "{path}");
            assert!(resolve(path.as_ref(), &places, true).is_err(), "{path} even with force");
        }
        assert!(resolve("/".as_ref(), &places, false).unwrap_err().to_string().contains("whole host"));
        let whole = resolve("/".as_ref(), &places, true).unwrap();
        assert_eq!(whole.guest_path(), Path::new("/host"));
        assert!(resolve(home.as_os_str(), &places, false).is_err());
        assert!(resolve(root.path().as_os_str(), &places, false).is_err(), "a parent of the home folder");
        assert!(resolve(home.as_os_str(), &places, true).is_ok());
        assert!(resolve(home.join("state/sandboxes").as_os_str(), &places, true).is_err());
        let missing = resolve("/nowhere/at/all".as_ref(), &places, false).unwrap_err();
        assert_eq!(missing.to_string(), "/nowhere/at/all does not exist");
    }

    #[test]
    fn bytes_that_are_no_text_survive_the_files() {
        let root = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(root.path()).unwrap().join(OsStr::from_bytes(b"a b\xff\xe4"));
        fs::create_dir(&folder).unwrap();
        let mut given = folder.clone().into_os_string();
        given.push(":ro");
        let share = resolve(&given, &places(&root.path().join("home")), false).unwrap();
        assert!(share.read_only && share.path == folder);
        let text = serde_json::to_string(&share).unwrap();
        assert!(text.contains("path_b64"), "{text}");
        assert_eq!(serde_json::from_str::<Share>(&text).unwrap(), share);
        let plain = Share { path: "/a b".into(), read_only: false, identity: None };
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"path":"/a b","read_only":false}"#);
        let bad = r#"{"path":"/a","path_b64":"?","read_only":false}"#;
        assert!(serde_json::from_str::<Share>(bad).is_err());
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
        assert_eq!(resolve_all(&[a.into(), format!("{a}/.").into()], &places, false).unwrap().len(), 1);
        assert!(resolve_all(&[a.into(), format!("{a}:ro").into()], &places, false).is_err());
    }

    #[test]
    fn a_folder_that_holds_our_own_state_or_cache_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        let home = root.join("home");
        let (state, cache) = (home.join(".local/state/vivarium"), home.join(".cache/vivarium"));
        // The cache is not there yet: what will hold it is refused all the same.
        fs::create_dir_all(&state).unwrap();
        fs::create_dir_all(home.join(".cache")).unwrap();
        fs::create_dir_all(home.join(".config")).unwrap();
        let places = Places { state, cache, config: home.join(".config/vivarium"), home: home.clone() };
        for folder in [".local", ".local/state", ".cache", ".config", ".local/state/vivarium"] {
            for force in [false, true] {
                let given = home.join(folder);
                let error = resolve(given.as_os_str(), &places, force).unwrap_err();
                assert!(error.to_string().ends_with("holds Vivarium's own state"), "{folder}: {error}");
            }
        }
        // An XDG folder that leads through a link.
        std::os::unix::fs::symlink(home.join(".cache"), root.join("other")).unwrap();
        let places = Places { cache: root.join("other/new/vivarium"), ..places };
        assert!(resolve(home.join(".cache").as_os_str(), &places, false).is_err());
    }

    #[test]
    fn a_share_within_a_writable_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let places = places(&root.path().join("home"));
        let work = root.path().join("work");
        fs::create_dir_all(work.join("vendor/deep")).unwrap();
        fs::create_dir_all(root.path().join("work-2")).unwrap();
        let path = |name: &str| OsString::from(format!("{}/{name}", root.path().display()));
        for given in [
            [path("work"), path("work/vendor:ro")],
            [path("work/vendor/deep:ro"), path("work")],
            [path("work"), path("work/vendor")],
        ] {
            let error = resolve_all(&given, &places, false).unwrap_err();
            assert!(error.to_string().contains("which the sandbox may write"), "{error}");
        }
        for given in [
            [path("work:ro"), path("work/vendor")],
            [path("work:ro"), path("work/vendor:ro")],
            [path("work"), path("work-2:ro")],
        ] {
            assert_eq!(resolve_all(&given, &places, false).unwrap().len(), 2, "{given:?}");
        }
        let three = [path("work:ro"), path("work/vendor"), path("work/vendor/deep:ro")];
        assert!(resolve_all(&three, &places, false).is_err());
    }

    /// What a guest of an outer share can do between two starts.
    #[test]
    fn a_share_that_became_a_link_or_another_folder_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        let places = places(&root.join("home"));
        let (outer, secret) = (root.join("outer"), root.join("secret"));
        fs::create_dir_all(outer.join("data/inner")).unwrap();
        fs::create_dir_all(secret.join("inner")).unwrap();
        let given = outer.join("data/inner").into_os_string();
        let shares = resolve_all(&[given], &places, false).unwrap();
        assert_eq!(open_all(&shares, &places, "box").unwrap().len(), 1);

        // A component above it, then the share's own name.
        fs::rename(outer.join("data"), outer.join("d")).unwrap();
        std::os::unix::fs::symlink(&secret, outer.join("data")).unwrap();
        let refused = |shares: &[Share]| open_all(shares, &places, "box").unwrap_err().to_string();
        assert!(refused(&shares).contains("symbolic link"), "{}", refused(&shares));
        fs::remove_file(outer.join("data")).unwrap();
        fs::create_dir(outer.join("data")).unwrap();
        std::os::unix::fs::symlink(&secret, outer.join("data/inner")).unwrap();
        assert!(refused(&shares).contains("symbolic link"), "{}", refused(&shares));
        fs::remove_file(outer.join("data/inner")).unwrap();

        fs::create_dir(outer.join("data/inner")).unwrap();
        assert!(refused(&shares).contains("another folder"), "{}", refused(&shares));
        // A file of the first versions has no identity: links are refused, the folder is taken.
        let old = [Share { identity: None, ..shares[0].clone() }];
        assert_eq!(open_all(&old, &places, "box").unwrap().len(), 1);
        // What may not be shared is refused at the start as well, whatever the file says.
        let reserved = [Share { path: "/etc".into(), read_only: false, identity: None }];
        assert!(refused(&reserved).contains("belongs to the system"));
        let nested = [
            Share { path: outer.clone(), read_only: false, identity: None },
            Share { path: outer.join("data"), read_only: true, identity: None },
        ];
        assert!(refused(&nested).contains("which the sandbox may write"));
    }
}
