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

/// The default name for an agent in a folder: `<agent>-<folder>`.
pub fn default_name(agent: &str, workspace: &Path) -> String {
    let folder = workspace.file_name().unwrap_or_default().to_string_lossy();
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

/// The one of `names` that `wanted` means: itself, or the only one that begins with it.
pub fn resolve<'n>(wanted: &str, names: &[&'n str]) -> Result<&'n str> {
    if let Some(name) = names.iter().find(|name| **name == wanted) {
        return Ok(name);
    }
    let matching: Vec<&'n str> =
        names.iter().copied().filter(|name| !wanted.is_empty() && name.starts_with(wanted)).collect();
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(Error::UnknownSandbox { name: wanted.into(), nearest: nearest(wanted, names) }),
        _ => Err(Error::AmbiguousName {
            prefix: wanted.into(),
            names: matching.iter().map(|name| (*name).to_owned()).collect(),
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
            ("/a/日本", "shell"),
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

    #[test]
    fn exact_beats_prefix_and_typos_are_named() {
        let names = ["shell-api", "shell-api-2", "claude-api"];
        assert_eq!(resolve("shell-api", &names).unwrap(), "shell-api");
        assert_eq!(resolve("cl", &names).unwrap(), "claude-api");
        assert!(matches!(resolve("sh", &names), Err(Error::AmbiguousName { .. })));
        let Err(Error::UnknownSandbox { nearest, .. }) = resolve("clade-api", &names) else { panic!() };
        assert_eq!(nearest.as_deref(), Some("claude-api"));
        let Err(Error::UnknownSandbox { nearest, .. }) = resolve("zzz", &names) else { panic!() };
        assert_eq!(nearest, None);
    }
}
