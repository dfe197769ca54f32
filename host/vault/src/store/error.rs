//! What can go wrong with kept secrets: one sentence without a value in it, and a next step.

use std::io;
use std::path::{Path, PathBuf};

use super::entry::Scope;
use super::taken::Taken;
use crate::binding::BindingError;
use crate::hosts::HostError;
use crate::shape::ShapeError;

/// The result of an operation on kept secrets.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on kept secrets failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No folder to keep secrets in.
    #[error("HOME is not set to an absolute path, so there is no place to keep secrets")]
    NoHome,
    /// The service is not in the table.
    #[error("no service is called \"{}\"", name.escape_debug())]
    UnknownService {
        /// What was asked for.
        name: String,
        /// A service with a name close to it.
        nearest: Option<&'static str>,
    },
    /// Nothing is kept under this name.
    #[error("no secret is called \"{}\" {scope}", name.escape_debug())]
    UnknownSecret {
        /// What was asked for.
        name: String,
        /// Where it was looked for: "for all sandboxes".
        scope: String,
    },
    /// A name that cannot be one.
    #[error("\"{}\" {why}", name.escape_debug())]
    BadName {
        /// The name.
        name: String,
        /// The rest of the sentence.
        why: &'static str,
    },
    /// Another secret that the same sandboxes have has what it takes of a guest: one of the two would not be there.
    #[error("{taken} has the placeholder of the secret \"{by}\" {scope} already")]
    Taken {
        /// What both take.
        taken: Taken,
        /// The other secret.
        by: String,
        /// For whom both are.
        scope: Scope,
        /// Whether that is the service's, and not the user's choice.
        is_fixed: bool,
    },
    /// A value that cannot be one.
    #[error("{0}")]
    BadValue(String),
    /// A host that cannot be one.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A path, header or method that cannot be one.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// A placeholder that cannot be one.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A source that cannot be understood.
    #[error("\"{}\" is no reference: there are op://VAULT/ITEM/FIELD, arn:aws:secretsmanager:…[#FIELD] and vault:PATH#FIELD", text.escape_debug())]
    BadReference {
        /// The reference.
        text: String,
    },
    /// The program that knows the value failed, or the variable of the host has none.
    #[error("{what} {why}")]
    Source {
        /// The program or variable, for people.
        what: String,
        /// How it failed.
        why: String,
        /// What can be done, if it can be said.
        hint: Option<String>,
    },
    /// The host refused a file operation.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried: "cannot read".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A file cannot be understood. It is left as it is.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file was written by a newer program.
    #[error("{} was written by a newer viv (format {found})", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format number.
        found: u32,
    },
    /// Others may read or write it.
    #[error("{} may be read or changed by others (mode {mode:o})", path.display())]
    Exposed {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The passphrase does not open the secrets.
    #[error("the passphrase of the secrets is wrong")]
    WrongPassphrase,
    /// The file that the passphrase is said to be in cannot be read.
    #[error("cannot read the passphrase in {}: {source}", path.display())]
    PassphraseFile {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A passphrase is needed and there is nobody to ask.
    #[error("the secrets are locked with a passphrase, and there is nobody to ask for it")]
    Locked,
    /// The keychain cannot be used.
    #[error("the keychain cannot be used: {why}")]
    Keychain {
        /// What it said.
        why: String,
    },
    /// The keychain does not have what the index says.
    #[error("the value of \"{name}\" is gone from {place}")]
    Gone {
        /// The secret.
        name: String,
        /// Where it was kept.
        place: String,
    },
    /// What a value is bound to was changed behind its back.
    #[error("the binding of \"{name}\" is not the one that its value was put in for")]
    Rebound {
        /// The secret.
        name: String,
    },
    /// Another program changes the secrets and does not come to an end.
    #[error("another viv has locked {} and does not go on", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// The secrets of one sandbox are too long in all.
    #[error(transparent)]
    Wire(#[from] crate::WireError),
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { what, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }

    /// Whether the passphrase was not to be had, or is another one.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::WrongPassphrase | Self::PassphraseFile { .. } | Self::Locked)
    }

    /// The next step, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoHome => "set HOME and try again".into(),
            Self::UnknownService { nearest: Some(name), .. } => {
                format!("did you mean {name}?  viv secret set --help names all")
            }
            Self::UnknownService { .. } => {
                "viv secret set --help names all; viv secret set-custom makes one of your own".into()
            }
            Self::UnknownSecret { .. } | Self::Gone { .. } => "viv secret ls shows all".into(),
            Self::Host(_) => "give it as in api.example.com, *.example.com or api.example.com:8443".into(),
            Self::Binding(_) | Self::BadName { .. } => "viv secret set-custom --help has examples".into(),
            Self::Taken { taken, by, scope, is_fixed } => {
                let own = if *scope == Scope::Global { "" } else { " --sandbox NAME" };
                let other = match (taken, is_fixed) {
                    (Taken::Variable(_), true) => format!("set {by} again with another --env"),
                    (Taken::Variable(_), false) => "give this one another --env".into(),
                    (Taken::Git(_), true) => format!("set {by} again with --env in place of --git-user"),
                    (Taken::Git(_), false) => "give this one --env in place of --git-user".into(),
                };
                format!("{other}, or take that one out:  viv secret rm{own} {by}")
            }
            Self::Shape(_) => "give it as in mytool-{rand}".into(),
            Self::BadReference { .. } => "viv secret set --help has examples".into(),
            Self::Source { hint, .. } => return hint.clone(),
            Self::Damaged { .. } => "nothing was changed; viv secret rm and set put it in anew".into(),
            Self::NewerFormat { .. } => "use the viv that made it, or a newer one".into(),
            Self::Exposed { path, .. } => format!("chmod go= {}", path.display()),
            Self::WrongPassphrase => {
                "try again; without it the secrets can only be removed and set anew".into()
            }
            Self::PassphraseFile { .. } => "VIV_VAULT_PASSPHRASE_FILE names another one".into(),
            Self::Locked => "VIV_VAULT_PASSPHRASE_FILE names a file with the passphrase".into(),
            Self::Keychain { .. } => {
                "viv secret set --store key-file or --store passphrase keeps the value in an encrypted file"
                    .into()
            }
            Self::Rebound { name } => format!("viv secret rm {name}, then set it again"),
            Self::Busy { .. } => "it may have been stopped with Ctrl-Z: fg lets it go on".into(),
            Self::BadValue(_) | Self::File { .. } | Self::Wire(_) => return None,
        })
    }
}
