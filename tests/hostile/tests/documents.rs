//! The documents on security name tests; each must be one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 2] = ["docs/threat_model.md", "docs/security-checklist.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two folders deep")
        .to_owned()
}

/// The folder of each of our crates by its name.
fn crates() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for group in fs::read_dir(root()).expect("the repository can be read").flatten() {
        for folder in fs::read_dir(group.path()).into_iter().flatten().flatten() {
            let manifest = fs::read_to_string(folder.path().join("Cargo.toml")).unwrap_or_default();
            let name = manifest.lines().find_map(|line| line.strip_prefix("name = \""));
            if let Some(name) = name.and_then(|rest| rest.split('"').next()) {
                found.insert(name.to_owned(), folder.path());
            }
        }
    }
    found
}

/// All Rust text beneath a folder.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|end| end == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

/// Whether a crate's sources have a test of this name: a function marked as one, or a case in a list of names.
fn has_test(sources: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let marked = sources.match_indices(&function).any(|(at, _)| {
        let before = sources.get(..at).unwrap_or_default().lines().rev();
        // Up to the end of what stands before it.
        before.take_while(|line| !line.ends_with(['}', ';'])).any(|line| line.trim() == "#[test]")
    });
    marked || sources.contains(&format!("\"{name}\""))
}

/// What a document names: `crate:test` between backticks.
fn named(document: &str) -> Vec<(&str, &str)> {
    let is_word = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_:".contains(&byte))
    };
    document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| is_word(word))
        .filter_map(|word| word.split_once(':'))
        .filter(|(of, test)| *of != "crate" && !test.is_empty() && !test.starts_with(':'))
        .collect()
}

/// Whether sources have a test that may be skipped.
fn may_skip(sources: &str) -> bool {
    ["ignorable_test(", "Verdict::Skipped(", "#[ignore"].iter().any(|mark| sources.contains(mark))
}

/// The crates of the list at a document's end: `* NAME: …` with the name between backticks.
fn listed(document: &str) -> BTreeSet<&str> {
    let lines = document.lines().skip_while(|line| *line != "## What a run may leave out");
    lines.filter_map(|line| line.strip_prefix("* `")?.split_once("`: ")).map(|(name, _)| name).collect()
}

/// A promise whose test was skipped is not shown: where that can happen, the document must say so.
#[test]
fn what_may_be_skipped_is_listed() {
    let crates = crates();
    let mut named_crates = BTreeSet::new();
    let mut list = BTreeSet::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).expect("the document can be read");
        named_crates.extend(named(&text).into_iter().map(|(of, _)| of.to_owned()));
        list.extend(listed(&text).into_iter().map(str::to_owned));
    }
    let skipping = named_crates.into_iter().filter(|name| {
        let mut text = String::new();
        sources(&crates[name], &mut text);
        may_skip(&text)
    });
    assert_eq!(skipping.collect::<BTreeSet<_>>(), list);
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let crates = crates();
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    let mut absent = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().join(document)).expect("the document can be read");
        let names = named(&text);
        assert!(names.len() > 20, "{document} names {} tests", names.len());
        for (of, test) in names {
            let (of, folder) =
                crates.get_key_value(of).unwrap_or_else(|| panic!("{document}: no crate {of}"));
            let sources = texts.entry(of).or_insert_with(|| {
                let mut text = String::new();
                sources(folder, &mut text);
                text
            });
            // Their names come from another crate's list.
            let attempt = of == "hostile" && confine::ATTEMPTS.iter().any(|attempt| attempt.name == test);
            if !attempt && !has_test(sources, test) {
                absent.push(format!("{document}: {of}:{test}"));
            }
        }
    }
    assert!(absent.is_empty(), "{absent:#?}");
}

#[test]
fn a_name_that_is_no_test_is_noticed() {
    let sources = "#[test]\nfn one() {}\n\nfn helper() {}\n\nconst CASES: &[&str] = &[\"two\"];\n";
    assert!(has_test(sources, "one") && has_test(sources, "two"));
    assert!(!has_test(sources, "helper") && !has_test(sources, "three") && !has_test(sources, "on"));
    assert!(may_skip("Trial::ignorable_test(name, run)") && !may_skip("Trial::test(name, run)"));
    let list = "* `not`: here\n## What a run may leave out\nwords\n* `a-b`: why\n* no `c`: no\n";
    assert_eq!(listed(list), BTreeSet::from(["a-b"]));
    assert_eq!(named("`a:b` `plain` `c-d:e::f` `not this: one`"), [("a", "b"), ("c-d", "e::f")]);
}
