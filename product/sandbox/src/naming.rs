//! Sandbox names: what they may be, what they are by default, and which one the user means.

use std::path::Path;

use crate::error::{Error, Result};

/// The longest name. A name is also the guest's host name ([`host_name`]), which may have 64 bytes.
const LONGEST: usize = 63;

/// Refuses what cannot be a name.
pub fn check(name: &str) -> Result<()> {
    let bad = |why| Err(Error::BadName { name: name.into(), why });
    if name.len() < 2 {
        return bad("it is too short");
    }
    if name.len() > LONGEST {
        return bad("it is too long");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return bad("it has other characters than letters, digits, dots, dashes and underscores");
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return bad("it does not begin with a letter or digit");
    }
    if name.ends_with('.') || name.ends_with('-') {
        return bad("it ends with a dot or dash");
    }
    Ok(())
}

/// The default name for an agent in a folder: `<agent>-<folder>`, in the Latin letters that come nearest.
pub fn default_name(agent: &str, workspace: &Path) -> String {
    let folder = workspace.file_name().unwrap_or_default().to_string_lossy();
    // Nothing for bytes that are no text.
    let folder = deunicode::deunicode_with_tofu_cow(&folder, "-");
    let mut tidy = String::new();
    for c in folder.chars() {
        let keep = c.is_ascii_alphanumeric() || c == '.' || c == '_';
        if keep {
            tidy.push(c);
        } else if !tidy.ends_with('-') {
            tidy.push('-');
        }
    }
    let tidy = tidy.trim_matches(['-', '.', '_']);
    let mut name = if tidy.is_empty() { agent.to_owned() } else { format!("{agent}-{tidy}") };
    // Room for "-9999" behind it.
    name.truncate(LONGEST - 5);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The guest's host name for a sandbox's name: what no host name may have (the underscore) becomes a dash.
pub fn host_name(name: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    name.chars().map(|c| if keep(c) { c } else { '-' }).collect()
}

/// `base`, or the first of `base-2`, `base-3`… that is free.
pub fn first_free(base: &str, is_taken: impl Fn(&str) -> bool) -> String {
    if !is_taken(base) {
        return base.into();
    }
    (2u64..).map(|n| format!("{base}-{n}")).find(|name| !is_taken(name)).unwrap_or_else(|| base.into())
}

/// The fewest digits that are taken for the beginning of an id.
const SHORTEST_ID: usize = 4;

/// A sandbox as a user may refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'n> {
    /// Its id, which always means it.
    pub id: &'n str,
    /// Its name; none if it cannot be read.
    pub name: Option<&'n str>,
}

/// What [`resolve`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meant<'n> {
    /// The id of the sandbox that is meant.
    pub id: &'n str,
    /// Whether its id or name was given in full.
    pub in_full: bool,
}

/// What a sandbox goes by: its name, or its id if it has none that is its alone.
pub fn goes_by<'n>(one: &Known<'n>, known: &[Known<'n>]) -> &'n str {
    match one.name {
        Some(name) if known.iter().filter(|other| other.name == Some(name)).count() == 1 => name,
        _ => one.id,
    }
}

/// The one that `wanted` means: its id or its name, or the only one whose name, or else whose id, begins with it.
///
/// # Errors
/// [`Error::UnknownSandbox`], [`Error::AmbiguousName`], or [`Error::SameName`] where several have the name that is meant.
pub fn resolve<'n>(wanted: &str, known: &[Known<'n>]) -> Result<Meant<'n>> {
    if let Some(one) = known.iter().find(|one| one.id == wanted) {
        return Ok(Meant { id: one.id, in_full: true });
    }
    let called: Vec<&Known<'n>> = known.iter().filter(|one| one.name == Some(wanted)).collect();
    if !called.is_empty() {
        return only(wanted, &called, known, true);
    }
    let begins = |text: &str| !wanted.is_empty() && text.starts_with(wanted);
    let named: Vec<&Known<'n>> = known.iter().filter(|one| one.name.is_some_and(begins)).collect();
    if !named.is_empty() {
        return only(wanted, &named, known, false);
    }
    let by_id: Vec<&Known<'n>> =
        known.iter().filter(|one| wanted.len() >= SHORTEST_ID && begins(one.id)).collect();
    if !by_id.is_empty() {
        return only(wanted, &by_id, known, false);
    }
    let names: Vec<&str> = known.iter().filter_map(|one| one.name).collect();
    Err(Error::UnknownSandbox { name: wanted.into(), nearest: nearest(wanted, &names), unreadable: 0 })
}

/// The only one of those that match.
fn only<'n>(wanted: &str, matching: &[&Known<'n>], known: &[Known<'n>], in_full: bool) -> Result<Meant<'n>> {
    match matching {
        [one] => Ok(Meant { id: one.id, in_full }),
        [first, others @ ..] if first.name.is_some() && others.iter().all(|one| one.name == first.name) => {
            Err(Error::SameName {
                name: first.name.unwrap_or(wanted).into(),
                ids: matching.iter().map(|one| one.id.to_owned()).collect(),
            })
        }
        _ => Err(Error::AmbiguousName {
            prefix: wanted.into(),
            names: matching.iter().map(|one| goes_by(one, known).to_owned()).collect(),
        }),
    }
}

/// The name that a mistyped one most likely meant, if any is close.
pub fn nearest(wanted: &str, names: &[&str]) -> Option<String> {
    let allowed = wanted.chars().count() / 3;
    names
        .iter()
        .map(|name| (distance(wanted, name), *name))
        .filter(|(far, _)| *far <= allowed.max(1))
        .min()
        .map(|(_, name)| name.to_owned())
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let best = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_are_always_valid() {
        for (folder, expected) in [
            ("/home/u/src/myproject", "shell-myproject"),
            ("/a/My Project (2)", "shell-My-Project-2"),
            ("/", "shell"),
            ("/a/...", "shell"),
            ("/a/日本", "shell-Ri-Ben"),
            ("/a/Ünï ço", "shell-Uni-co"),
            ("/a/Größe ½", "shell-Grosse-1-2"),
            ("/a/Проект", "shell-Proekt"),
            ("/a/\u{e000}\u{fffd}", "shell"),
            ("/a/.dotfiles", "shell-dotfiles"),
        ] {
            assert_eq!(default_name("shell", Path::new(folder)), expected);
            check(expected).unwrap();
        }
        let long = default_name("shell", Path::new(&format!("/{}", "x".repeat(200))));
        check(&long).unwrap();
        check(&first_free(&long, |name| !name.ends_with("-12"))).unwrap();
    }

    #[test]
    fn names_that_would_not_be_host_names_or_paths_are_refused() {
        for name in ["", "a", "-ab", ".ab", "a/b", "a b", "ab-", "ü-x", &"x".repeat(64)] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn every_name_gives_a_host_name() {
        let names = [default_name("shell", Path::new("/a/my_project")), "a_b".into(), "x.y_".into()];
        for (name, host) in names.iter().zip(["shell-my-project", "a-b", "x.y-"]) {
            check(name).unwrap();
            assert_eq!(host_name(name), host);
        }
    }

    #[test]
    fn second_and_third_of_a_name() {
        assert_eq!(first_free("a-b", |_| false), "a-b");
        assert_eq!(first_free("a-b", |name| name == "a-b"), "a-b-2");
        assert_eq!(first_free("a-b", |name| name != "a-b-3"), "a-b-3");
    }

    fn known<'n>(all: &[(&'n str, &'n str)]) -> Vec<Known<'n>> {
        let name = |name: &'n str| Some(name).filter(|name| !name.is_empty());
        all.iter().map(|(id, called)| Known { id, name: name(called) }).collect()
    }

    #[test]
    fn exact_beats_prefix_and_typos_are_named() {
        let all = known(&[("a1", "shell-api"), ("a2", "shell-api-2"), ("a3", "claude-api")]);
        assert_eq!(resolve("shell-api", &all).unwrap(), Meant { id: "a1", in_full: true });
        assert_eq!(resolve("cl", &all).unwrap(), Meant { id: "a3", in_full: false });
        assert!(matches!(resolve("sh", &all), Err(Error::AmbiguousName { .. })));
        let Err(Error::UnknownSandbox { nearest, .. }) = resolve("clade-api", &all) else { panic!() };
        assert_eq!(nearest.as_deref(), Some("claude-api"));
        for unknown in ["zzz", "", "a"] {
            let Err(Error::UnknownSandbox { nearest, .. }) = resolve(unknown, &all) else { panic!() };
            assert_eq!(nearest, None);
        }
    }

    #[test]
    fn of_two_with_one_name_neither_is_taken_and_each_goes_by_its_id() {
        let all = known(&[("0123456789abcdef", "shell-p2"), ("0123ffffffffffff", "shell-p2"), ("77", "")]);
        for wanted in ["shell-p2", "shell", "0123"] {
            let error = resolve(wanted, &all).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, Error::SameName { .. }), "{said}");
            assert!(all[..2].iter().all(|one| said.contains(one.id)), "{said}");
            assert!(error.hint().unwrap().contains("0123456789abcdef"));
        }
        for one in &all {
            assert_eq!(resolve(one.id, &all).unwrap(), Meant { id: one.id, in_full: true });
            assert_eq!(goes_by(one, &all), one.id);
        }
        assert_eq!(resolve("01234", &all).unwrap(), Meant { id: "0123456789abcdef", in_full: false });
        let two = known(&[("0123456789abcdef", "shell-a"), ("0123ffffffffffff", "shell-b")]);
        let Err(Error::AmbiguousName { names, .. }) = resolve("0123", &two) else { panic!() };
        assert_eq!(names, ["shell-a", "shell-b"]);
        assert!(resolve("012", &all).is_err(), "too little to be meant as an id");
    }
}
