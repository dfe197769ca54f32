//! Which sandboxes there are, and which one is meant by what a user says.

use std::fs;
use std::io;
use std::path::Path;

use super::{Damaged, Folder, Sandbox, Sandboxes, Wish};
use crate::error::{Error, Result};
use crate::naming::{self, Known, Meant};

impl Sandboxes {
    /// All sandboxes that can be read, by name, and the others, by id.
    pub fn list(&self) -> Result<(Vec<Sandbox>, Vec<Damaged>)> {
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for entry in
            fs::read_dir(&self.root).map_err(|source| Error::file("cannot read", &self.root, source))?
        {
            let Ok(entry) = entry else { continue };
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let cause = match Sandbox::read(entry.path()) {
                Ok(sandbox) => {
                    found.push(sandbox);
                    continue;
                }
                Err(Error::File { source, path, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Error::Damaged { path, why: "it is not there".into() }
                }
                Err(error) => error,
            };
            // Else it was deleted between the two looks: a folder is there as a whole or not at all.
            if entry.path().is_dir() {
                damaged.push(Damaged::new(entry.path(), cause));
            }
        }
        found.sort_by(|a, b| (&a.spec.name, &a.spec.id).cmp(&(&b.spec.name, &b.spec.id)));
        damaged.sort_by_key(|one| one.id());
        Ok((found, damaged))
    }

    /// The sandbox that the user means by a name, an id, or a unique beginning of one.
    ///
    /// # Errors
    /// Besides what [`naming::resolve`] gives, [`Error::Unreadable`] if it is one that cannot be read.
    pub fn find(&self, wanted: &str) -> Result<Sandbox> {
        let (all, damaged) = self.list()?;
        let (id, goes_by, _) = look_up(wanted, &all, &damaged)?;
        if let Some(one) = damaged.into_iter().find(|one| one.id() == id) {
            return Err(Error::Unreadable { name: id, cause: Box::new(one.into_cause()) });
        }
        match { all }.into_iter().find(|sandbox| sandbox.spec.id == id) {
            Some(sandbox) => Ok(Sandbox { folder: sandbox.folder.going_by(&goes_by), ..sandbox }),
            None => Err(Error::UnknownSandbox { name: wanted.into(), nearest: None, unreadable: 0 }),
        }
    }

    /// The folder of the sandbox that the user means, also of one that cannot be read, which goes by its id.
    pub fn find_folder(&self, wanted: &str) -> Result<Folder> {
        Ok(self.folder_of(wanted)?.0)
    }

    /// [`Self::find_folder`] for what is done at once and cannot be undone: a mere beginning does not do.
    pub fn find_folder_in_full(&self, wanted: &str) -> Result<Folder> {
        match self.folder_of(wanted)? {
            (folder, true) => Ok(folder),
            (folder, false) => {
                Err(Error::OnlyBeginning { wanted: wanted.into(), name: folder.name().to_owned() })
            }
        }
    }

    fn folder_of(&self, wanted: &str) -> Result<(Folder, bool)> {
        let (all, damaged) = self.list()?;
        let (id, goes_by, in_full) = look_up(wanted, &all, &damaged)?;
        Ok((Folder::new(self.root.join(id), goes_by), in_full))
    }

    /// The sandbox with this id.
    pub fn by_id(&self, id: &str) -> Result<Sandbox> {
        Sandbox::read(self.root.join(id))
    }

    /// The sandbox that a `run` with this wish attaches to, if there is one: the one of this name, or without a name the
    /// one of the same agent and workspace. A name that belongs to another agent or workspace is refused.
    ///
    /// # Errors
    /// Among others [`Error::SameName`] if two have the name of the one that is meant, and [`Error::MayBeRunning`] if none is found,
    /// no name is given, and one runs of which nobody can say whose folder it has.
    pub fn existing(&self, wish: &Wish) -> Result<Option<Sandbox>> {
        let (all, damaged) = self.list()?;
        let known = known(&all, &[]);
        let workspace = wish.shares.first().map(|share| share.path.as_path());
        let same = |sandbox: &Sandbox| {
            sandbox.spec.agent == wish.agent && Some(sandbox.spec.workspace()) == workspace
        };
        let found = match &wish.name {
            Some(name) => all.iter().find(|sandbox| sandbox.spec.name == *name),
            // The one with a default name before those that the user named, the oldest first.
            None => {
                let default = naming::default_name(&wish.agent, workspace.unwrap_or(Path::new("/")));
                let rank = |s: &&Sandbox| (!s.spec.name.starts_with(&default), s.spec.created.clone());
                all.iter().filter(|sandbox| same(sandbox)).min_by_key(rank)
            }
        };
        if let Some(sandbox) = found {
            // Of several with one name none is taken without a word.
            naming::resolve(&sandbox.spec.name, &known)?;
            if !same(sandbox) {
                let (name, workspace) = (sandbox.spec.name.clone(), sandbox.spec.workspace().into());
                return Err(Error::NameTaken { name, workspace });
            }
            return Ok(Some(sandbox.clone()));
        }
        let may_be_it = |one: &&Damaged| one.may_be(&wish.agent, workspace) && one.is_running();
        let ids: Vec<String> = match wish.name {
            Some(_) => Vec::new(),
            None => damaged.iter().filter(may_be_it).map(|one| one.id()).collect(),
        };
        if ids.is_empty() { Ok(None) } else { Err(Error::MayBeRunning { ids }) }
    }

    /// All names that are taken, as far as they can be told: those of sandboxes of a newer version, too.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let (all, damaged) = self.list()?;
        let told = damaged.iter().filter_map(|one| one.told_name().map(str::to_owned));
        Ok(all.into_iter().map(|sandbox| sandbox.spec.name).chain(told).collect())
    }

    /// What is said of a name that is taken, though no sandbox that can be read has it.
    pub(super) fn taken(&self, name: &str) -> Error {
        let damaged = self.list().map(|(_, damaged)| damaged).unwrap_or_default();
        match { damaged }.into_iter().find(|one| one.told_name() == Some(name)) {
            Some(one) => Error::Unreadable { name: name.into(), cause: Box::new(one.into_cause()) },
            None => Error::BadName { name: name.into(), why: "another sandbox has it" },
        }
    }
}

/// The id of the one that is meant, what it goes by, and whether it was named in full.
fn look_up(wanted: &str, all: &[Sandbox], damaged: &[Damaged]) -> Result<(String, String, bool)> {
    let ids: Vec<String> = damaged.iter().map(|one| one.id()).collect();
    let known = known(all, &ids);
    let mut found = naming::resolve(wanted, &known);
    // Another one whose name only begins so is not what was meant.
    let is_certain = matches!(found, Ok(Meant { in_full: true, .. }) | Err(Error::SameName { .. }));
    if !is_certain && let Some(one) = damaged.iter().find(|one| one.told_name() == Some(wanted)) {
        return Err(Error::GoesById { name: wanted.into(), id: one.id() });
    }
    if let Err(Error::UnknownSandbox { unreadable, .. }) = &mut found {
        *unreadable = damaged.len();
    }
    let Meant { id, in_full } = found?;
    let goes_by = known.iter().find(|one| one.id == id).map_or(id, |one| naming::goes_by(one, &known));
    Ok((id.to_owned(), goes_by.to_owned(), in_full))
}

fn known<'n>(all: &'n [Sandbox], damaged: &'n [String]) -> Vec<Known<'n>> {
    let sound = all.iter().map(|sandbox| Known { id: &sandbox.spec.id, name: Some(&sandbox.spec.name) });
    sound.chain(damaged.iter().map(|id| Known { id, name: None })).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{sandboxes, wish};
    use super::super::{LOCK, SPEC};
    use super::*;

    fn damage(sandbox: &Sandbox) {
        fs::write(sandbox.folder().join(SPEC), "").unwrap();
    }

    #[test]
    fn a_damaged_one_goes_by_its_id_and_is_stopped_and_deleted_by_it() {
        let (_root, all) = sandboxes();
        let sandbox = all.create(&wish("/a/p2", None)).unwrap().0;
        let id = sandbox.spec.id.clone();
        let lock = sandbox.lock(Duration::ZERO).unwrap().unwrap();
        damage(&sandbox);
        let damaged = all.list().unwrap().1;
        assert!(matches!(&damaged[..], [one] if one.id() == id && one.name() == id && one.is_running()));
        assert!(damaged[0].mend().starts_with(&format!("viv rm -f {id}")), "{}", damaged[0].mend());
        for wanted in [&id[..], &id[..6]] {
            let folder = all.find_folder(wanted).unwrap();
            assert_eq!((folder.id(), folder.is_running()), (id.clone(), true));
        }
        let refused = all.find(&id).unwrap_err();
        assert!(matches!(refused, Error::Unreadable { .. }), "{refused}");
        assert!(matches!(all.find_folder(&id).unwrap().remove(), Err(Error::Running { name }) if name == id));
        drop(lock);
        all.find_folder_in_full(&id).unwrap().remove().unwrap();
        assert!(all.list().unwrap().1.is_empty() && !sandbox.folder().exists());
    }

    #[test]
    fn a_lost_lock_hides_no_shim_and_is_made_again_when_there_is_none() {
        let (_root, all) = sandboxes();
        let sandbox = all.create(&wish("/a/p2", None)).unwrap().0;
        let listener = crate::control::listen(sandbox.folder()).unwrap();
        fs::remove_file(sandbox.folder().join(LOCK)).unwrap();
        assert!(sandbox.is_running() && sandbox.lock(Duration::ZERO).unwrap().is_none());
        assert!(matches!(sandbox.remove(), Err(Error::Running { .. })));
        drop(listener);
        assert!(!sandbox.is_running());
        sandbox.remove().unwrap();
    }

    #[test]
    fn none_is_made_while_one_runs_that_may_be_it() {
        let (_root, all) = sandboxes();
        let first = all.create(&wish("/a/p2", None)).unwrap().0;
        let lock = first.lock(Duration::ZERO).unwrap().unwrap();
        let spec = fs::read_to_string(first.folder().join(SPEC)).unwrap();
        damage(&first);
        let refused = all.create(&wish("/a/p2", None)).unwrap_err();
        assert!(matches!(&refused, Error::MayBeRunning { ids } if *ids == [first.id()]), "{refused}");
        assert!(refused.hint().unwrap().contains(&format!("viv stop {}", first.id())));
        // One that the user wants beside it, and one that is there.
        let named = all.create(&wish("/a/p2", Some("beside"))).unwrap().0;
        assert_eq!(all.create(&wish("/a/p2", None)).unwrap().0.spec.id, named.spec.id);
        // What can still be told is believed.
        fs::write(first.folder().join(SPEC), spec.replacen("\"cpus\"", "\"cpu\"", 1)).unwrap();
        all.create(&wish("/b/other", None)).unwrap();
        fs::remove_dir_all(named.folder()).unwrap();
        assert!(matches!(all.create(&wish("/a/p2", None)), Err(Error::MayBeRunning { .. })));
        drop(lock);
        assert_eq!(all.create(&wish("/a/p2", None)).unwrap().0.spec.name, "shell-p2-2");
    }

    #[test]
    fn of_two_with_one_name_each_goes_by_its_id_alone() {
        let (_root, all) = sandboxes();
        let first = all.create(&wish("/a/p2", None)).unwrap().0;
        let spec = fs::read(first.folder().join(SPEC)).unwrap();
        damage(&first);
        let second = all.create(&wish("/a/p2", None)).unwrap().0;
        fs::write(first.folder().join(SPEC), spec).unwrap();
        let is_said = |error: Error| {
            let said = error.to_string();
            assert!(matches!(error, Error::SameName { .. }), "{said}");
            assert!(said.contains(&first.spec.id) && said.contains(&second.spec.id), "{said}");
        };
        is_said(all.find("shell-p2").unwrap_err());
        is_said(all.find_folder("shell-p").unwrap_err());
        is_said(all.find_folder_in_full("shell-p2").unwrap_err());
        is_said(all.existing(&wish("/a/p2", None)).unwrap_err());
        is_said(all.create(&wish("/b/other", Some("shell-p2"))).unwrap_err());
        for one in [&first, &second] {
            assert_eq!(all.find(&one.spec.id).unwrap().name(), one.spec.id);
            assert_eq!(all.find_folder_in_full(&one.spec.id).unwrap().name(), one.spec.id);
        }
        all.find_folder(&second.spec.id).unwrap().remove().unwrap();
        assert_eq!(all.find("shell-p2").unwrap().spec.id, first.spec.id);
    }

    #[test]
    fn a_search_that_fails_mentions_what_cannot_be_read_and_deletes_nothing() {
        let (_root, all) = sandboxes();
        all.create(&wish("/a/api", None)).unwrap();
        let other = all.create(&wish("/a/other", None)).unwrap().0;
        let spec = fs::read_to_string(other.folder().join(SPEC)).unwrap();
        for text in ["", "{", "[]", "{\"schema\": 1}"] {
            fs::write(other.folder().join(SPEC), text).unwrap();
            for wanted in ["zzz", "shell-apo", "shell-other"] {
                let error = all.find_folder_in_full(wanted).unwrap_err();
                let (said, hint) = (error.to_string(), error.hint().unwrap());
                assert!(
                    said.contains(". One sandbox cannot be read") && said.contains("viv diagnose"),
                    "{said}"
                );
                assert!(!hint.contains("rm") && !hint.contains(&other.spec.id), "{hint}");
            }
        }
        // Where its name can be told, that one is named, and no other that begins so is taken.
        all.create(&wish("/b/other", Some("shell-other-b"))).unwrap();
        fs::write(other.folder().join(SPEC), spec.replacen("\"cpus\"", "\"cpu\"", 1)).unwrap();
        let error = all.find_folder("shell-other").unwrap_err();
        assert!(matches!(&error, Error::GoesById { id, .. } if *id == other.spec.id), "{error}");
    }

    #[test]
    fn a_copy_of_a_folder_is_no_second_sandbox_and_no_file_is_one() {
        let (_root, all) = sandboxes();
        let sandbox = all.create(&wish("/a/api", None)).unwrap().0;
        let copy = all.root.join("copy");
        fs::create_dir(&copy).unwrap();
        fs::copy(sandbox.folder().join(SPEC), copy.join(SPEC)).unwrap();
        fs::write(all.root.join("notes"), "").unwrap();
        let (sound, damaged) = all.list().unwrap();
        assert_eq!((sound.len(), damaged.len(), damaged[0].id().as_str()), (1, 1, "copy"));
        assert_eq!(all.find("shell-api").unwrap().spec.id, sandbox.spec.id);
        all.find_folder_in_full("copy").unwrap().remove().unwrap();
        assert!(sandbox.folder().exists() && !copy.exists());
    }

    #[test]
    fn what_is_deleted_at_once_is_named_in_full() {
        let (_root, all) = sandboxes();
        let sandbox = all.create(&wish("/a/api", None)).unwrap().0;
        for beginning in ["shell-a", &sandbox.spec.id[..8]] {
            assert_eq!(all.find_folder(beginning).unwrap().id(), sandbox.spec.id);
            let refused = all.find_folder_in_full(beginning).unwrap_err();
            assert_eq!(refused.hint().as_deref(), Some("viv rm -f shell-api"), "{refused}");
        }
        for whole in ["shell-api", &sandbox.spec.id] {
            assert_eq!(all.find_folder_in_full(whole).unwrap().id(), sandbox.spec.id);
        }
    }
}
