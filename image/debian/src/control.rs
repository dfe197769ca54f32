//! Control paragraphs (deb822(5)) and what of them matters: packages and their relations.

use std::collections::HashMap;
use std::io::BufRead;

use crate::Version;

/// Longest paragraph that is looked at; a package's is a few kilobytes.
const PARAGRAPH_LIMIT: usize = 1 << 20;

/// Reads paragraphs one after another: each a list of field names (lower case) and values.
pub struct Paragraphs<R> {
    reader: R,
}

impl<R: BufRead> Paragraphs<R> {
    /// Reads from `reader`.
    pub const fn new(reader: R) -> Self {
        Self { reader }
    }

    fn read(&mut self) -> std::io::Result<Option<HashMap<String, String>>> {
        let mut fields: HashMap<String, String> = HashMap::new();
        let mut last: Option<String> = None;
        let mut size = 0;
        loop {
            let mut line = Vec::new();
            let limit = u64::try_from(PARAGRAPH_LIMIT).unwrap_or(u64::MAX);
            let read = std::io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut line)?;
            size += read;
            if size > PARAGRAPH_LIMIT {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    "a control paragraph is too long",
                ));
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if line.is_empty() {
                if read == 0 || !fields.is_empty() {
                    return Ok((!fields.is_empty()).then_some(fields));
                }
            } else if line.starts_with([' ', '\t']) {
                if let Some(value) = last.as_ref().and_then(|name| fields.get_mut(name)) {
                    value.push('\n');
                    value.push_str(line.trim_start());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                let name = name.to_ascii_lowercase();
                fields.insert(name.clone(), value.trim().to_owned());
                last = Some(name);
            }
        }
    }
}

impl<R: BufRead> Iterator for Paragraphs<R> {
    type Item = std::io::Result<HashMap<String, String>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// How a dependency bounds a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// `<<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `=`
    Equal,
    /// `>=`
    GreaterOrEqual,
    /// `>>`
    Greater,
}

impl Relation {
    /// Whether `have` stands in this relation to `bound`.
    #[must_use]
    pub fn holds(self, have: &Version, bound: &Version) -> bool {
        match self {
            Self::Less => have < bound,
            Self::LessOrEqual => have <= bound,
            Self::Equal => have == bound,
            Self::GreaterOrEqual => have >= bound,
            Self::Greater => have > bound,
        }
    }
}

/// One name in a dependency field, with its bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The package's name, without an architecture.
    pub name: String,
    /// The bound, if any.
    pub bound: Option<(Relation, Version)>,
}

impl Dependency {
    /// Any version of `name`.
    #[must_use]
    pub fn any(name: &str) -> Self {
        Self { name: name.to_owned(), bound: None }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.split(['[', '<']).next().filter(|_| !text.contains('(')).unwrap_or(text);
        let (name, bound) = match text.split_once('(') {
            Some((name, rest)) => (name, Some(rest.split_once(')')?.0.trim())),
            None => (text, None),
        };
        let name = name.trim().split(':').next()?.trim();
        if name.is_empty() {
            return None;
        }
        let bound = match bound {
            Some(bound) => {
                let at = bound.find(|c: char| !matches!(c, '<' | '>' | '='))?;
                let (operator, version) = bound.split_at(at);
                let relation = match operator {
                    "<<" => Relation::Less,
                    "<=" | "<" => Relation::LessOrEqual,
                    "=" => Relation::Equal,
                    ">=" | ">" => Relation::GreaterOrEqual,
                    ">>" => Relation::Greater,
                    _ => return None,
                };
                Some((relation, Version::new(version)))
            }
            None => None,
        };
        Some(Self { name: name.to_owned(), bound })
    }
}

impl std::fmt::Display for Dependency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some((relation, version)) = &self.bound else { return f.write_str(&self.name) };
        let sign = match relation {
            Relation::Less => "<<",
            Relation::LessOrEqual => "<=",
            Relation::Equal => "=",
            Relation::GreaterOrEqual => ">=",
            Relation::Greater => ">>",
        };
        write!(f, "{} ({sign} {version})", self.name)
    }
}

/// Reads a dependency field: groups of which each must hold, of alternatives of which one must.
/// What cannot be read as a dependency is left out of its group.
#[must_use]
pub fn parse_relations(text: &str) -> Vec<Vec<Dependency>> {
    text.split(',')
        .map(|group| group.split('|').filter_map(Dependency::parse).collect::<Vec<_>>())
        .filter(|group| !group.is_empty())
        .collect()
}

/// A binary package as an index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Its architecture: Debian's word, or `all`.
    pub arch: String,
    /// `Essential: yes`.
    pub essential: bool,
    /// `Priority`, as written.
    pub priority: String,
    /// `Pre-Depends` and `Depends`.
    pub depends: Vec<Vec<Dependency>>,
    /// `Conflicts` and `Breaks`.
    pub conflicts: Vec<Dependency>,
    /// `Provides`; a bound is always [`Relation::Equal`].
    pub provides: Vec<Dependency>,
    /// The path below the mirror's root.
    pub filename: String,
    /// The package's size in bytes.
    pub size: u64,
    /// Its SHA-256 digest.
    pub sha256: fetch::Digest,
    /// Which suite's index it is from.
    pub suite: String,
}

impl Package {
    /// Takes a paragraph of a `Packages` file; `None` if a field that is needed is missing or malformed.
    #[must_use]
    pub fn from_paragraph(fields: &HashMap<String, String>, suite: &str) -> Option<Self> {
        let get = |name: &str| fields.get(name).map(String::as_str);
        let relations = |name: &str| get(name).map(parse_relations).unwrap_or_default();
        let mut depends = relations("pre-depends");
        depends.extend(relations("depends"));
        let mut conflicts = relations("conflicts");
        conflicts.extend(relations("breaks"));
        let filename = get("filename")?.to_owned();
        let escapes = filename.starts_with('/') || filename.split('/').any(|part| part == "..");
        if escapes || filename.contains(char::is_whitespace) {
            return None;
        }
        Some(Self {
            name: get("package")?.to_owned(),
            version: Version::new(get("version")?),
            arch: get("architecture")?.to_owned(),
            essential: get("essential") == Some("yes"),
            priority: get("priority").unwrap_or("optional").to_owned(),
            depends,
            conflicts: conflicts.into_iter().flatten().collect(),
            provides: relations("provides").into_iter().flatten().collect(),
            filename,
            size: get("size")?.parse().ok()?,
            sha256: get("sha256").and_then(|hex| fetch::Digest::from_hex(hex).ok())?,
            suite: suite.to_owned(),
        })
    }

    /// Whether this very package, by its own name, is what `wanted` asks for.
    #[must_use]
    pub fn is(&self, wanted: &Dependency) -> bool {
        self.name == wanted.name
            && wanted.bound.as_ref().is_none_or(|(relation, bound)| relation.holds(&self.version, bound))
    }

    /// Whether this package, by its name or by what it provides, is what `wanted` asks for.
    #[must_use]
    pub fn satisfies(&self, wanted: &Dependency) -> bool {
        self.is(wanted)
            || self.provides.iter().any(|provided| {
                provided.name == wanted.name
                    && match (&wanted.bound, &provided.bound) {
                        (None, _) => true,
                        (Some((relation, bound)), Some((_, version))) => relation.holds(version, bound),
                        (Some(_), None) => false,
                    }
            })
    }
}

/// The newest version of every package in some suites, and who provides what.
#[derive(Debug, Default)]
pub struct PackageIndex {
    packages: Vec<Package>,
    by_name: HashMap<String, usize>,
    providers: HashMap<String, Vec<String>>,
}

impl PackageIndex {
    /// Reads a `Packages` file into the index; of a package that is there already the newer version stays.
    ///
    /// # Errors
    /// If reading fails or a paragraph is absurdly long.
    pub fn add(&mut self, reader: impl BufRead, suite: &str, arch: crate::Arch) -> std::io::Result<()> {
        for paragraph in Paragraphs::new(reader) {
            let Some(package) = Package::from_paragraph(&paragraph?, suite) else { continue };
            if package.arch == "all" || package.arch == arch.debian() {
                self.insert(package);
            }
        }
        Ok(())
    }

    /// Adds one package unless a newer version is there.
    pub fn insert(&mut self, package: Package) {
        for provided in &package.provides {
            let providers = self.providers.entry(provided.name.clone()).or_default();
            if !providers.contains(&package.name) {
                providers.push(package.name.clone());
            }
        }
        match self.by_name.get(&package.name).and_then(|index| self.packages.get_mut(*index)) {
            Some(old) if old.version >= package.version => {}
            Some(old) => *old = package,
            None => {
                self.by_name.insert(package.name.clone(), self.packages.len());
                self.packages.push(package);
            }
        }
    }

    /// The package of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Package> {
        self.by_name.get(name).and_then(|index| self.packages.get(*index))
    }

    /// The packages that provide `name` without having it as their own, in the order of their names.
    #[must_use]
    pub fn providers(&self, name: &str) -> Vec<&Package> {
        let names = self.providers.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut packages: Vec<&Package> = names.iter().filter_map(|name| self.get(name)).collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        packages
    }

    /// Every package.
    pub fn iter(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "Package: a\nVersion: 1.0-1\nArchitecture: amd64\nPre-Depends: libc (>= 2)\nDepends: b | c (<< 3), d:any\n\
        Provides: v (= 7), w\nFilename: pool/a.deb\nSize: 10\nDescription: x\n more\n\
        SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\n\n\
        Package: a\nVersion: 0.9\nArchitecture: amd64\nFilename: pool/old.deb\nSize: 1\n\
        SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\n\
        Package: foreign\nVersion: 1\nArchitecture: riscv64\nFilename: pool/f.deb\nSize: 1\n\
        SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\n\
        Package: escape\nVersion: 1\nArchitecture: all\nFilename: ../../etc/passwd\nSize: 1\n\
        SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";

    fn index() -> PackageIndex {
        let mut index = PackageIndex::default();
        index.add(INDEX.as_bytes(), "trixie", crate::Arch::X86_64).unwrap();
        index
    }

    #[test]
    fn reads_an_index_and_keeps_the_newest() {
        let index = index();
        let a = index.get("a").unwrap();
        assert_eq!(a.version.as_str(), "1.0-1");
        assert_eq!(a.depends.len(), 3);
        assert_eq!(a.depends[1][1].to_string(), "c (<< 3)");
        assert_eq!(a.depends[2][0].to_string(), "d");
        assert!(index.get("foreign").is_none() && index.get("escape").is_none());
    }

    #[test]
    fn a_versioned_provision_satisfies_a_bound() {
        let index = index();
        let a = index.get("a").unwrap();
        for (text, yes) in
            [("v", true), ("v (>= 7)", true), ("v (>> 7)", false), ("w", true), ("w (>= 1)", false)]
        {
            assert_eq!(a.satisfies(&parse_relations(text)[0][0]), yes, "{text}");
        }
        assert_eq!(index.providers("v").len(), 1);
    }

    #[test]
    fn architectures_and_profiles_are_no_part_of_a_name() {
        let groups =
            parse_relations("a:any (>= 1) [amd64] <!nocheck>, b [linux-any], c <x>, (>= 1), , d (!! 3)");
        let text: Vec<String> = groups.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(text, ["a (>= 1)", "b", "c"]);
    }
}
