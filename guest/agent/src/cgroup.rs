//! Control groups: one per session, so that what it started can be counted, and an out-of-memory kill be told from any other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fail::{Doing, Outcome};

const ROOT: &str = "/sys/fs/cgroup";
const SESSIONS: &str = "/sys/fs/cgroup/sessions";

/// The groups that a session holds. A new session's group stays empty until its process has joined it, so empty ones may be
/// removed only when they are not among these.
static HELD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A group of processes.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

/// Hands the controllers that there are to the groups below the root; Docker's groups need them too.
pub(crate) fn delegate() -> Outcome {
    let available = fs::read_to_string(format!("{ROOT}/cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // One by one: a controller that cannot be delegated must not keep the others back.
        let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), format!("+{controller}"));
    }
    fs::create_dir_all(SESSIONS).doing("Cannot make a control group")?;
    for controller in ["memory", "pids"] {
        let _ = fs::write(format!("{SESSIONS}/cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

impl Group {
    /// Makes a group for a session, and removes those of ended ones that have become empty.
    pub(crate) fn for_session(number: u64) -> Outcome<Self> {
        Self::among(Path::new(SESSIONS), number)
    }

    fn among(sessions: &Path, number: u64) -> Outcome<Self> {
        let mut held = held();
        for entry in fs::read_dir(sessions).into_iter().flatten().flatten() {
            if !held.contains(&entry.path()) {
                // Refused while processes are in it, and for what is not a folder.
                let _ = fs::remove_dir(entry.path());
            }
        }
        let group = Self::at(sessions.join(number.to_string()))?;
        held.insert(group.path.clone());
        Ok(group)
    }

    /// Makes a group for a service.
    pub(crate) fn for_service(name: &str) -> Outcome<Self> {
        Self::at(format!("{ROOT}/{name}").into())
    }

    fn at(path: PathBuf) -> Outcome<Self> {
        fs::create_dir_all(&path).doing("Cannot make a control group")?;
        Ok(Self { path })
    }

    /// Writing `0` to it puts the writer into the group.
    pub(crate) fn entrance(&self) -> Outcome<File> {
        File::options().write(true).open(self.path.join("cgroup.procs")).doing("Cannot open a control group")
    }

    /// Whether the kernel killed a process of it for want of memory.
    pub(crate) fn had_oom_kill(&self) -> bool {
        oom_kills(&fs::read_to_string(self.path.join("memory.events")).unwrap_or_default()) > 0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        held().remove(&self.path);
        // Refused while background processes live in it; the next session tries again.
        let _ = fs::remove_dir(&self.path);
    }
}

fn oom_kills(events: &str) -> u64 {
    let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read_from_the_events() {
        assert_eq!(oom_kills("low 0\noom 3\noom_kill 2\noom_group_kill 9\n"), 2);
        assert_eq!(oom_kills(""), 0);
    }

    /// Plain folders stand in for groups: both are removed only when empty.
    #[test]
    fn a_new_session_leaves_the_groups_of_others_that_nothing_has_joined_yet() {
        let sessions = tempfile::tempdir().unwrap();
        fs::create_dir(sessions.path().join("1")).unwrap();
        let first = Group::among(sessions.path(), 2).unwrap();
        let second = Group::among(sessions.path(), 3).unwrap();
        assert!(first.path.is_dir() && second.path.is_dir());
        assert!(!sessions.path().join("1").exists(), "nobody holds it");
        // A background process keeps its group beyond its session.
        fs::create_dir(first.path.join("process")).unwrap();
        let left = first.path.clone();
        drop(first);
        assert!(left.is_dir());
        fs::remove_dir(left.join("process")).unwrap();
        let _third = Group::among(sessions.path(), 4).unwrap();
        assert!(!left.exists() && second.path.is_dir());
    }
}
