//! A small dependency resolver: enough for one distribution's consistent suite, and no more.
//!
//! It takes the newest version of everything, prefers what is chosen already, then the first alternative that exists, then the
//! most important provider; it never goes back on a choice. Recommended packages are not followed. A contradiction
//! (`Conflicts`, `Breaks`) is an error instead of a search.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Dependency, Package, PackageIndex};

/// Why no set could be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Something is needed that no suite has.
    #[error("{needed_by} needs {dependency}, which the archive does not have")]
    Missing {
        /// The package (or "the image") that needs it.
        needed_by: String,
        /// What it needs.
        dependency: String,
    },
    /// Two chosen packages exclude each other.
    #[error("{package} cannot be installed together with {other}")]
    Conflict {
        /// The package that excludes.
        package: String,
        /// The one it excludes.
        other: String,
    },
}

/// What to resolve.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// Names of packages to have.
    pub roots: &'a [&'a str],
    /// Whether all packages marked essential are wanted too.
    pub essential: bool,
    /// Names that must not be chosen, whoever needs them; a dependency on one counts as met.
    pub without: &'a [&'a str],
}

/// A set of packages that satisfies itself, in an order in which dependencies come first where there is no cycle.
#[derive(Debug, Clone)]
pub struct Resolution<'a> {
    /// The packages.
    pub packages: Vec<&'a Package>,
}

/// Chooses packages out of an index.
#[derive(Debug)]
pub struct Resolver<'a> {
    index: &'a PackageIndex,
    chosen: BTreeMap<&'a str, &'a Package>,
    /// Which chosen package each dependency group of a package was met by; for the order.
    met_by: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Resolver<'a> {
    /// Chooses out of `index`.
    #[must_use]
    pub const fn new(index: &'a PackageIndex) -> Self {
        Self { index, chosen: BTreeMap::new(), met_by: BTreeMap::new() }
    }

    /// Finds the set for `wanted`.
    ///
    /// # Errors
    /// If something does not exist or excludes each other.
    pub fn resolve(mut self, wanted: &Wanted<'_>) -> Result<Resolution<'a>, ResolveError> {
        let mut queue: Vec<&'a Package> = Vec::new();
        if wanted.essential {
            let mut essential: Vec<&Package> =
                self.index.iter().filter(|package| package.essential).collect();
            essential.sort_by(|a, b| a.name.cmp(&b.name));
            for package in essential {
                self.choose(package, &mut queue);
            }
        }
        for root in wanted.roots {
            let package = self.index.get(root).ok_or_else(|| ResolveError::Missing {
                needed_by: "the image".to_owned(),
                dependency: (*root).to_owned(),
            })?;
            self.choose(package, &mut queue);
        }
        // First in, first out: what was asked for by name decides before what is only needed by something.
        let mut next = 0;
        while let Some(package) = queue.get(next).copied() {
            next += 1;
            for group in &package.depends {
                if group.iter().any(|one| wanted.without.contains(&one.name.as_str())) {
                    continue;
                }
                let found = self.meet(group).ok_or_else(|| ResolveError::Missing {
                    needed_by: package.name.clone(),
                    dependency: group.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "),
                })?;
                self.met_by.entry(&package.name).or_default().push(&found.name);
                self.choose(found, &mut queue);
            }
        }
        self.check_conflicts()?;
        Ok(Resolution { packages: self.ordered() })
    }

    fn choose(&mut self, package: &'a Package, queue: &mut Vec<&'a Package>) {
        if self.chosen.insert(&package.name, package).is_none() {
            queue.push(package);
        }
    }

    /// The package to meet a dependency with.
    fn meet(&self, group: &[Dependency]) -> Option<&'a Package> {
        let chosen = |wanted: &Dependency| {
            let by_name = self.chosen.get(wanted.name.as_str()).copied().filter(|package| package.is(wanted));
            by_name.or_else(|| self.chosen.values().copied().find(|package| package.satisfies(wanted)))
        };
        group.iter().find_map(chosen).or_else(|| group.iter().find_map(|wanted| self.candidate(wanted)))
    }

    fn candidate(&self, wanted: &Dependency) -> Option<&'a Package> {
        let by_name = self.index.get(&wanted.name).filter(|package| package.is(wanted));
        by_name.or_else(|| {
            let providers = self.index.providers(&wanted.name);
            providers
                .into_iter()
                .filter(|package| package.satisfies(wanted))
                .min_by_key(|package| (importance(&package.priority), package.name.as_str()))
        })
    }

    fn check_conflicts(&self) -> Result<(), ResolveError> {
        for package in self.chosen.values() {
            for excluded in &package.conflicts {
                let other = self.chosen.values().find(|other| {
                    // A package may exclude a name that it provides itself: it means all the others of that kind.
                    other.name != package.name && other.satisfies(excluded)
                });
                if let Some(other) = other {
                    return Err(ResolveError::Conflict {
                        package: package.name.clone(),
                        other: other.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Depth first over the dependencies, names in order: the same set always gives the same order.
    fn ordered(&self) -> Vec<&'a Package> {
        let mut order = Vec::with_capacity(self.chosen.len());
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for name in self.chosen.keys() {
            // An own stack instead of recursion: the depth is the archive's choice.
            let mut stack: Vec<(&'a str, usize)> = vec![(name, 0)];
            if !seen.insert(name) {
                continue;
            }
            while let Some((name, position)) = stack.pop() {
                let needs = self.met_by.get(name).map(Vec::as_slice).unwrap_or_default();
                match needs.get(position) {
                    Some(need) => {
                        stack.push((name, position + 1));
                        if seen.insert(need) {
                            stack.push((need, 0));
                        }
                    }
                    None => order.extend(self.chosen.get(name)),
                }
            }
        }
        order
    }
}

fn importance(priority: &str) -> u8 {
    match priority {
        "required" => 0,
        "important" => 1,
        "standard" => 2,
        "optional" => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Version, parse_relations};

    fn package(name: &str, depends: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: Version::new("1.0"),
            arch: "all".to_owned(),
            essential: false,
            priority: "optional".to_owned(),
            depends: parse_relations(depends),
            conflicts: Vec::new(),
            provides: Vec::new(),
            filename: format!("pool/{name}.deb"),
            size: 1,
            sha256: fetch::Digest::sha256_of(name.as_bytes()),
            suite: "test".to_owned(),
        }
    }

    fn index(packages: Vec<Package>) -> PackageIndex {
        let mut index = PackageIndex::default();
        packages.into_iter().for_each(|package| index.insert(package));
        index
    }

    fn names(index: &PackageIndex, wanted: &Wanted<'_>) -> Result<Vec<String>, ResolveError> {
        let resolution = Resolver::new(index).resolve(wanted)?;
        Ok(resolution.packages.iter().map(|package| package.name.clone()).collect())
    }

    #[test]
    fn dependencies_come_first_and_cycles_end() {
        let index = index(vec![
            package("app", "lib, tool"),
            package("lib", "base"),
            package("tool", "app"),
            package("base", ""),
        ]);
        let order = names(&index, &Wanted { roots: &["app"], ..Wanted::default() }).unwrap();
        let at = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert_eq!(order.len(), 4);
        assert!(at("base") < at("lib") && at("lib") < at("app"));
    }

    #[test]
    fn an_alternative_that_is_chosen_already_is_preferred() {
        let index =
            index(vec![package("app", "first | second"), package("first", ""), package("second", "")]);
        assert_eq!(
            names(&index, &Wanted { roots: &["app"], ..Wanted::default() }).unwrap(),
            ["first", "app"]
        );
        assert_eq!(
            names(&index, &Wanted { roots: &["app", "second"], ..Wanted::default() }).unwrap(),
            ["second", "app"]
        );
    }

    #[test]
    fn of_several_providers_the_most_important_is_taken() {
        let provider = |name: &str, priority: &str| Package {
            provides: parse_relations("awk").remove(0),
            priority: priority.to_owned(),
            ..package(name, "")
        };
        let index =
            index(vec![package("base", "awk"), provider("gawk", "optional"), provider("mawk", "required")]);
        assert_eq!(
            names(&index, &Wanted { roots: &["base"], ..Wanted::default() }).unwrap(),
            ["mawk", "base"]
        );
    }

    #[test]
    fn what_is_missing_or_excluded_is_an_error() {
        let mut rival = package("rival", "");
        rival.conflicts = parse_relations("app (<< 2)").remove(0);
        let index = index(vec![package("app", ""), rival, package("broken", "nothing (>= 3)")]);
        let conflict = names(&index, &Wanted { roots: &["app", "rival"], ..Wanted::default() });
        assert!(matches!(conflict, Err(ResolveError::Conflict { .. })));
        let missing = names(&index, &Wanted { roots: &["broken"], ..Wanted::default() });
        assert_eq!(
            missing.unwrap_err().to_string(),
            "broken needs nothing (>= 3), which the archive does not have"
        );
        assert!(
            names(&index, &Wanted { roots: &["broken"], without: &["nothing"], ..Wanted::default() }).is_ok()
        );
    }
}
