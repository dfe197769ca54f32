//! `viv check`: whether a stopped sandbox's disk is whole.

use std::fmt::Write;

use sandbox::check::{self, FileSystem, Findings};
use sandbox::engine::{self, Engine};
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::images::Images;
use sandbox::places::Places;

use crate::cli::CheckOptions;
use crate::commands::{may_interact, say, size};
use crate::failure::Failure;
use crate::setup;

/// The exit code when something is wrong with the file system.
const DAMAGED: u8 = 1;

/// The verb.
pub(crate) fn run(options: &CheckOptions, no_input: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let sandbox = Sandboxes::open(&places)?.find(&options.name)?;
    // The files first: they need nothing else, and without them there is nothing to look at.
    let held = check::hold(&sandbox)?;
    let report = check::files(&sandbox, &held)?;
    let findings = if options.quick {
        Findings { disk: report, file_system: None }
    } else {
        setup::restore_image(&places, &sandbox, may_interact(no_input))?;
        let assets = Images::open(&places, setup::AGENT)?.assets(&sandbox.spec.image)?;
        let asked = sandbox.spec.engine.as_deref().and_then(Engine::from_name);
        let engine = engine::choose(asked, &places)?.engine;
        check::whole(&sandbox, report, &held, &assets, engine)?
    };
    drop(held);
    say(&if options.json {
        json(&sandbox, &findings, options.quick)
    } else {
        table(&sandbox, &findings, options.quick)
    })?;
    Ok(if findings.is_clean() { 0 } else { DAMAGED })
}

fn json(sandbox: &Sandbox, findings: &Findings, quick: bool) -> String {
    let object = serde_json::json!({
        "name": sandbox.spec.name,
        "id": sandbox.spec.id,
        "disk": findings.disk,
        "file_system": findings.file_system,
        "checked": if quick { "files" } else { "all" },
        "clean": findings.is_clean(),
    });
    format!("{object}\n")
}

fn table(sandbox: &Sandbox, findings: &Findings, quick: bool) -> String {
    let mut text = String::new();
    let disk = &findings.disk;
    let _ = writeln!(
        text,
        "{}: a disk of {}, which takes {} on the host",
        sandbox.spec.name,
        size(disk.size),
        size(disk.allocated)
    );
    for layer in &disk.layers {
        let _ = writeln!(text, "  {}  whole, {}", layer.layer.file, size(layer.allocated));
    }
    match &findings.file_system {
        None if quick => text.push_str("  file system  not looked at (--quick)\n"),
        None if !disk.made => text.push_str("  file system  none yet: the sandbox has never been ready\n"),
        None => {}
        Some(found) => file_system(&mut text, found),
    }
    text
}

fn file_system(text: &mut String, found: &FileSystem) {
    let word = if found.clean { "clean" } else { "DAMAGED" };
    let _ = match (found.used, found.size) {
        (Some(used), Some(all)) => {
            writeln!(text, "  file system  {word}, {} of {} in use", size(used), size(all))
        }
        _ => writeln!(text, "  file system  {word}"),
    };
    for finding in &found.findings {
        let _ = writeln!(text, "    {finding}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_said_in_the_words_of_e2fsck() {
        let found = FileSystem {
            clean: false,
            size: None,
            used: None,
            findings: vec!["it cannot be mounted: x".into(), "Bad magic number in super-block".into()],
        };
        let mut text = String::new();
        file_system(&mut text, &found);
        assert_eq!(
            text,
            "  file system  DAMAGED\n    it cannot be mounted: x\n    Bad magic number in super-block\n"
        );
    }
}
