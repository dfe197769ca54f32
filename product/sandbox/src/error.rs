//! What can go wrong with a sandbox, in the user's words: one sentence and, where there is one, a next step.

use std::io;
use std::path::{Path, PathBuf};

/// The result of an operation on sandboxes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on sandboxes failed. `Display` gives one sentence without the source; [`Error::hint`] gives the
/// next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sandbox has this name.
    #[error("no sandbox is called \"{name}\"{}", others(*unreadable))]
    UnknownSandbox {
        /// What was asked for.
        name: String,
        /// A name that is close to it.
        nearest: Option<String>,
        /// How many sandboxes there are whose name cannot be told.
        unreadable: usize,
    },
    /// The sandbox that is meant cannot be read.
    #[error("the sandbox \"{name}\" cannot be used; {cause}")]
    Unreadable {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        cause: Box<Error>,
    },
    /// The sandbox of this name cannot be read, and goes by its id.
    #[error("the sandbox \"{name}\" cannot be read; it goes by its id, {id}")]
    GoesById {
        /// Its name.
        name: String,
        /// Its id.
        id: String,
    },
    /// Several sandboxes have one name.
    #[error("{} sandboxes are called \"{name}\": {}", ids.len(), ids.join(", "))]
    SameName {
        /// The name.
        name: String,
        /// Their ids.
        ids: Vec<String>,
    },
    /// A beginning of a name, where only the whole of it will do.
    #[error("\"{wanted}\" is only the beginning of a name; rm -f wants it in full")]
    OnlyBeginning {
        /// What was asked for.
        wanted: String,
        /// The one that begins with it.
        name: String,
    },
    /// A sandbox that cannot be read runs, and may be the one that is asked for.
    #[error(
        "a sandbox runs whose folder cannot be told, so it may be the one that is wanted: {}",
        ids.join(", ")
    )]
    MayBeRunning {
        /// The ids of all such.
        ids: Vec<String>,
    },
    /// A unique prefix was wanted and several sandboxes begin with it.
    #[error("\"{prefix}\" is the beginning of several sandboxes: {}", names.join(", "))]
    AmbiguousName {
        /// What was asked for.
        prefix: String,
        /// The sandboxes that begin with it.
        names: Vec<String>,
    },
    /// Folders were named that a running sandbox does not have.
    #[error("{name} runs already, and without {} as asked for now", path.display())]
    SharesFixed {
        /// The sandbox.
        name: String,
        /// The folder.
        path: PathBuf,
    },
    /// A running sandbox has a folder that is no longer at its path.
    #[error("{name} runs with the folder that was {} before; another one is there now", path.display())]
    Exchanged {
        /// The sandbox.
        name: String,
        /// The path.
        path: PathBuf,
    },
    /// The wanted name belongs to a sandbox of another workspace.
    #[error("the name \"{name}\" is taken by the sandbox of {}", workspace.display())]
    NameTaken {
        /// The name.
        name: String,
        /// The workspace of the sandbox that has it.
        workspace: PathBuf,
    },
    /// A name has characters or a length that names may not have.
    #[error("\"{name}\" cannot be a sandbox's name: {why}")]
    BadName {
        /// The name.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A folder that should be shared cannot be.
    #[error("{} {why}", path.display())]
    BadWorkspace {
        /// The folder as given or resolved.
        path: PathBuf,
        /// The rest of the sentence.
        why: String,
        /// The next step.
        hint: String,
    },
    /// The sandbox is running and the operation wants it stopped.
    #[error("the sandbox \"{name}\" is running")]
    Running {
        /// Its name.
        name: String,
    },
    /// Somebody looks at the sandbox's disk.
    #[error("the sandbox \"{name}\" is being checked")]
    Checked {
        /// Its name.
        name: String,
    },
    /// Another client makes a sandbox and does not come to an end.
    #[error("another viv has locked {} and does not go on", path.display())]
    NamesHeld {
        /// The lock.
        path: PathBuf,
    },
    /// A file of a sandbox was written by a newer program.
    #[error("{} was written by a newer viv (format {found}, this one reads up to {known})", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u32,
        /// The newest this program reads.
        known: u32,
    },
    /// A file of a sandbox cannot be understood.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A sandbox's disk is not as it should be.
    #[error("the disk of \"{name}\" is damaged: {why}")]
    Disk {
        /// The sandbox.
        name: String,
        /// Where the disk is.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The host refused a file operation.
    #[error("{what} {}: {}", path.display(), in_words(source))]
    File {
        /// What was tried, to precede the path: "cannot read".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The host refused something without a path.
    #[error("{what}: {}", in_words(source))]
    Host {
        /// What was tried, as a sentence's beginning: "cannot start a process".
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The sandbox did not start.
    #[error("the sandbox did not start: {why}")]
    NotStarted {
        /// What the shim or the vmm said.
        why: String,
        /// The next step.
        hint: Option<String>,
    },
    /// The sandbox ended or broke the connection while it was used.
    #[error("the connection to the sandbox was lost: {why}")]
    Lost {
        /// What was seen.
        why: String,
    },
    /// The sandbox's own process does not answer.
    #[error("the process of \"{name}\" does not answer")]
    Silent {
        /// The sandbox.
        name: String,
        /// The process's id, if it has noted it.
        pid: Option<u32>,
    },
    /// No engine can run sandboxes here, or the one asked for cannot.
    #[error("the {engine} engine cannot be used here: {why}")]
    Engine {
        /// Its name.
        engine: String,
        /// What the engine said.
        why: String,
        /// The next step.
        hint: String,
    },
    /// Nobody knows how a sandbox's disk is.
    #[error("the disk could not be looked at: {why}")]
    Unchecked {
        /// What was in the way.
        why: String,
        /// The next step.
        hint: Option<String>,
    },
    /// What the user wrote cannot be done, or not be understood.
    #[error("{why}")]
    Mistake {
        /// One sentence.
        why: String,
        /// The next step.
        hint: String,
    },
    /// The base image could not be made ready.
    #[error("{why}")]
    SetUp {
        /// One sentence.
        why: String,
        /// The next step.
        hint: Option<String>,
    },
}

impl Error {
    /// The next step for the user, if there is one that can be typed.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownSandbox { nearest: Some(name), .. } => {
                Some(format!("did you mean {name}?  viv ls shows all"))
            }
            Self::UnknownSandbox { .. } => Some("viv ls shows all; viv run shell makes one".into()),
            Self::Unreadable { cause, .. } => cause.hint(),
            Self::AmbiguousName { .. } => Some("give more of the name".into()),
            Self::GoesById { .. } => Some("viv diagnose says why, and what can be done".into()),
            Self::SameName { ids, .. } => Some(format!(
                "an id does as well as a name, as in  viv attach {}   viv ls shows which is which",
                ids.first().map_or("ID", String::as_str)
            )),
            Self::OnlyBeginning { name, .. } => Some(format!("viv rm -f {name}")),
            Self::MayBeRunning { ids } => Some(format!(
                "viv stop {}, then the same command again; or --name NAME makes another one beside it",
                ids.join(" ")
            )),
            Self::SharesFixed { name, .. } | Self::Exchanged { name, .. } => {
                Some(format!("viv stop {name}, then the same command again"))
            }
            Self::NameTaken { .. } => Some("choose another --name, or leave it out".into()),
            Self::BadName { .. } => Some(
                "use 2 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit"
                    .into(),
            ),
            Self::BadWorkspace { hint, .. } | Self::Engine { hint, .. } | Self::Mistake { hint, .. } => {
                Some(hint.clone())
            }
            Self::Running { name } => Some(format!("viv stop {name}   (viv rm -f stops it as well)")),
            Self::Checked { .. } => Some("viv check ends by itself; the same command again then".into()),
            Self::NamesHeld { .. } => {
                Some("it may have been stopped with Ctrl-Z: fg lets it go on, jobs and ps find it".into())
            }
            Self::NewerFormat { .. } => Some("use the viv that made it, or a newer one".into()),
            Self::NotStarted { hint, .. } | Self::Unchecked { hint, .. } | Self::SetUp { hint, .. } => {
                hint.clone()
            }
            Self::Damaged { path, .. } if path.ends_with("policy.json") => Some(format!(
                "correct {}, or begin anew:  viv policy reset; nothing is allowed until then",
                path.display()
            )),
            Self::Damaged { path, .. } if path.ends_with("network.json") => {
                Some("correct it, or remove it; docs/network.md says what may stand in it".into())
            }
            Self::Damaged { path, .. } if path.parent().is_some_and(|folder| folder.ends_with("kits")) => {
                Some("it is a kit's copy: correct it, or remove it with the kit's rules; the sandbox is as it was".into())
            }
            Self::Damaged { path, .. } => Some(match path.parent() {
                // Its name cannot be told.
                Some(folder) if path.ends_with("spec.json") => {
                    let id = folder.file_name().unwrap_or_default().to_string_lossy();
                    format!(
                        "viv rm -f {id} deletes it with its disk, also while it runs; the workspace stays as it is"
                    )
                }
                _ => "viv rm deletes the sandbox; the workspace stays as it is".into(),
            }),
            Self::Disk { folder, .. } => Some(format!(
                "nothing was changed; keep a copy of {} before anything is tried",
                folder.display()
            )),
            Self::File { source, .. } | Self::Host { source, .. } => Some(match source.kind() {
                _ if is_full(source) => room_hint(source).into(),
                io::ErrorKind::PermissionDenied => "look who owns it, and who may write it".into(),
                _ => "run the same again with -v, which says more".into(),
            }),
            Self::Silent { pid: Some(pid), .. } => {
                Some(format!("it is process {pid}; kill -9 {pid} ends the sandbox, as a power cut would"))
            }
            Self::Silent { pid: None, .. } => Some("the same command again; it may just have started".into()),
            Self::Lost { .. } => Some("viv ls shows its state; the same command starts it again".into()),
        }
    }

    /// A failed file operation; `what` precedes the path.
    pub fn file(what: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::File { what, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// A failed host operation without a path.
    pub fn host(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Host { what, source: source.into() }
    }
}

/// The second sentence of a search that found nothing: what was looked for may be one of these.
fn others(unreadable: usize) -> String {
    match unreadable {
        0 => String::new(),
        1 => ". One sandbox cannot be read and goes by its id alone: viv diagnose says which".into(),
        count => {
            format!(". {count} sandboxes cannot be read and go by their ids alone: viv diagnose says which")
        }
    }
}

/// Whether the host has no room: no space, no quota, or a file that may not grow (`ulimit -f`).
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::StorageFull | K::QuotaExceeded | K::FileTooLarge)
}

/// The next step when [`is_full`] holds.
pub(crate) fn room_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::FileTooLarge {
        "ulimit -f unlimited, then the same command again"
    } else {
        "free some space:  viv ls shows what each sandbox takes"
    }
}

/// An operating-system error as a user would say it, without its number.
pub(crate) fn in_words(error: &io::Error) -> String {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => "it does not exist".into(),
        K::PermissionDenied => "permission denied".into(),
        K::AlreadyExists => "it already exists".into(),
        K::StorageFull => "the disk is full".into(),
        K::QuotaExceeded => "the disk quota is used up".into(),
        K::FileTooLarge => "a file may not become that large (ulimit -f)".into(),
        K::ReadOnlyFilesystem => "the file system is read-only".into(),
        K::NotADirectory => "it is not a folder".into(),
        K::OutOfMemory => "out of memory".into(),
        K::ConnectionRefused => "nothing answers there".into(),
        K::BrokenPipe | K::ConnectionReset | K::UnexpectedEof => "the other side ended".into(),
        _ => {
            let text = error.to_string();
            let plain = text.split(" (os error").next().unwrap_or(&text);
            plain.to_lowercase()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_mended_by_trying_again_has_a_next_step() {
        let damaged = |path: &str| Error::Damaged { path: path.into(), why: "x".into() }.hint().unwrap();
        assert!(damaged("/s/0123/spec.json").starts_with("viv rm -f 0123 "));
        assert!(damaged("/s/0123/disk/disk.json").contains("viv rm"));
        assert!(damaged("/c/vivarium/network.json").starts_with("correct it"));
        let full = Error::file("cannot write", "/x", io::Error::from_raw_os_error(28));
        assert!(full.hint().unwrap().contains("space"));
        let limited = Error::file("cannot write", "/x", io::Error::from_raw_os_error(27));
        assert!(limited.hint().unwrap().contains("ulimit"));
        assert!(Error::host("cannot start", io::Error::other("x")).hint().is_some());
        assert!(Error::Lost { why: "x".into() }.hint().is_some());
    }

    #[test]
    fn an_error_number_is_never_shown() {
        let error = Error::file("cannot open", "/x", io::Error::from_raw_os_error(40));
        let text = error.to_string();
        assert!(text.starts_with("cannot open /x: "), "{text}");
        assert!(!text.contains("os error"), "{text}");
    }
}
