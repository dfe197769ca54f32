//! `viv prune`: stopped sandboxes, and what the cache keeps for nobody.

use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::images::{Images, Old};
use sandbox::places::Places;

use crate::cli::PruneOptions;
use crate::commands::lifecycle::{ask, each};
use crate::commands::{may_interact, say, size};
use crate::failure::{Failure, OURS};
use crate::setup::AGENT;

/// The verb.
pub(crate) fn run(options: &PruneOptions, no_input: bool) -> Result<u8, Failure> {
    let places = Places::from_env()?;
    let images = Images::open(&places, AGENT)?;
    let all = Sandboxes::open(&places)?;
    let (mut sandboxes, damaged) = all.list()?;
    let half_deleted = if options.images { Vec::new() } else { all.leftovers()? };
    sandboxes.retain(|sandbox| !options.images && sandbox.state().is_over());
    super::say_damaged(&damaged);
    let old = images.old()?;
    let mut bytes = 0;
    let mut lines = String::new();
    let mut line = |what: &str, room: u64, note: &str| {
        bytes += room;
        lines.push_str(&format!("  {:>9}  {what}{note}\n", size(room)));
    };
    for sandbox in &sandboxes {
        let workspace = sandbox::escape::escaped(&places.short(sandbox.spec.workspace()), 60);
        let note = format!("   with all that was installed and made outside of {workspace}");
        line(&format!("the sandbox {}", sandbox.spec.name), sandbox.disk_use(), &note);
    }
    if !half_deleted.is_empty() {
        let half_deleted = Old { what: String::new(), files: half_deleted };
        let what = match half_deleted.files.len() {
            1 => "what is left of a sandbox".into(),
            count => format!("what is left of {count} sandboxes"),
        };
        line(&what, half_deleted.bytes(), "   whose making or deletion was broken off");
    }
    for old in &old {
        line(&old.what, old.bytes(), "");
    }
    if lines.is_empty() {
        say("There is nothing to delete.\n")?;
        return Ok(0);
    }
    let total = size(bytes);
    if options.dry_run {
        say(&format!("Would be deleted:\n{lines}{total} in all.\n"))?;
        return Ok(0);
    }
    if !options.force {
        if !may_interact(no_input) {
            return Err(Failure::new("viv prune asks before it deletes, and there is nobody to ask")
                .hint("viv prune --dry-run says what it would delete; viv prune -f does not ask"));
        }
        eprint!("This will be deleted:\n{lines}");
        if !ask(&format!("{total} in all; no workspace is touched. Go on?"))? {
            eprintln!("Nothing was deleted.");
            return Ok(OURS);
        }
    }
    let code = each((sandboxes, 0), remove);
    if !options.images {
        all.remove_leftovers()?;
    }
    // After the sandboxes, which may have been the last to need an image.
    images.remove_all_old()?;
    eprintln!("viv: {total} are free again");
    Ok(code)
}

fn remove(sandbox: Sandbox) -> Result<(), Failure> {
    let (name, id) = (sandbox.spec.name.clone(), sandbox.spec.id.clone());
    match sandbox.remove() {
        // Somebody has started it since, who wants it; or deleted it, which is as good.
        Err(sandbox::Error::Running { .. } | sandbox::Error::UnknownSandbox { .. }) => Ok(()),
        other => {
            other?;
            crate::commands::secret::forget(&id);
            say(&format!("{name}\n"))
        }
    }
}
