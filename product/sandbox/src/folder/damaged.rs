//! Sandboxes that are there and cannot be read.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use super::{Folder, SPEC};
use crate::error::Error;
use crate::workspace::Share;

/// A sandbox whose spec cannot be read. It goes by its id, and what needs no spec can still be done with it: it can be stopped
/// and deleted, and has logs.
#[derive(Debug)]
pub struct Damaged {
    folder: Folder,
    cause: Error,
    told: Told,
}

/// What can be told all the same, as of a spec that a newer version wrote.
#[derive(Debug, Default)]
struct Told {
    name: Option<String>,
    agent: Option<String>,
    workspace: Option<PathBuf>,
}

impl Told {
    fn read(spec: &Path) -> Self {
        let value = fs::read(spec).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let value: serde_json::Value = value.unwrap_or_default();
        let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
        let share = value.get("shares").and_then(|shares| shares.get(0)).cloned();
        let share: Option<Share> = share.and_then(|share| serde_json::from_value(share).ok());
        Self { name: text("name"), agent: text("agent"), workspace: share.map(|share| share.path) }
    }
}

impl Deref for Damaged {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Damaged {
    pub(super) fn new(path: PathBuf, cause: Error) -> Self {
        let told = Told::read(&path.join(SPEC));
        let folder = Folder::new(path, "");
        let id = folder.id();
        Self { folder: folder.going_by(&id), cause, told }
    }

    /// What is wrong with it.
    pub fn cause(&self) -> &Error {
        &self.cause
    }

    pub(super) fn into_cause(self) -> Error {
        self.cause
    }

    /// The name that it had, if that can be told.
    pub fn told_name(&self) -> Option<&str> {
        self.told.name.as_deref()
    }

    /// What it is in a word, beside the states of others.
    pub fn word(&self) -> &'static str {
        match self.cause {
            Error::Damaged { .. } => "damaged",
            Error::NewerFormat { .. } => "newer",
            _ => "unreadable",
        }
    }

    /// The next step.
    pub fn mend(&self) -> String {
        let otherwise = || format!("viv rm -f {} deletes it with its disk", self.id());
        self.cause.hint().unwrap_or_else(otherwise)
    }

    /// Whether it may be the sandbox of this agent and workspace, as far as can be told.
    pub(super) fn may_be(&self, agent: &str, workspace: Option<&Path>) -> bool {
        self.told.agent.as_deref().is_none_or(|told| told == agent)
            && self.told.workspace.as_deref().is_none_or(|told| Some(told) == workspace)
    }
}
