//! What of a guest only one secret can have: a variable, or git's password for a server.

use std::collections::BTreeMap;
use std::fmt;

use super::{Entry, Error, Result, Vault};

/// What of a guest only one secret can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Taken {
    /// The variable of this name.
    Variable(String),
    /// Git's password for URLs that begin so.
    Git(String),
}

impl fmt::Display for Taken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(out, "the variable {name}"),
            Self::Git(url) => write!(out, "git at {url}"),
        }
    }
}

/// What two secrets of one sandbox take, neither of which is more its own than the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// What both take.
    pub taken: Taken,
    /// Whose placeholder it has in the guest.
    pub kept: String,
    /// The secret that is not there by it.
    pub lost: String,
}

impl Entry {
    fn takes(&self) -> impl Iterator<Item = Taken> {
        let git = self.git_password().map(|git| Taken::Git(git.url.clone()));
        self.env.keys().cloned().map(Taken::Variable).chain(git)
    }
}

impl Vault {
    /// Refuses a secret that takes what another one has already which the same sandboxes are to have. A sandbox's own one may take what a
    /// global one has: it takes its place.
    ///
    /// # Errors
    ///
    /// [`Error::Taken`] names the other one.
    pub fn check_taken(&self, entry: &Entry) -> Result<()> {
        // What it has already, however it came to that, it may keep: a value can always be replaced.
        let before = self.entries().iter().find(|known| known.is_same(entry));
        let is_new = |taken: &Taken| before.is_none_or(|before| before.takes().all(|had| had != *taken));
        let others =
            self.entries().iter().filter(|known| known.scope == entry.scope && !known.is_same(entry));
        for other in others {
            if let Some(taken) =
                entry.takes().filter(is_new).find(|taken| other.takes().any(|has| has == *taken))
            {
                return Err(Error::Taken {
                    taken,
                    by: other.name.clone(),
                    scope: entry.scope.clone(),
                    is_fixed: entry.service.is_some(),
                });
            }
        }
        Ok(())
    }

    /// What two secrets of this sandbox take nevertheless: the index may be an older program's, or somebody's own.
    pub fn clashes(&self, sandbox: &str) -> Vec<Clash> {
        let mut owners: BTreeMap<Taken, &Entry> = BTreeMap::new();
        let mut lost = Vec::new();
        for entry in self.of(sandbox) {
            for taken in entry.takes() {
                let before = owners.insert(taken.clone(), entry);
                lost.extend(before.map(|before| (taken, before)));
            }
        }
        // Before one of the sandbox's own the others stand back deliberately.
        let clash = |(taken, lost): (Taken, &Entry)| {
            let kept = owners.get(&taken).filter(|kept| kept.scope == lost.scope)?;
            Some(Clash { taken, kept: kept.name.clone(), lost: lost.name.clone() })
        };
        lost.into_iter().filter_map(clash).collect()
    }
}
