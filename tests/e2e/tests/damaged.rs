//! Sandboxes whose `spec.json` cannot be read, and two of one name: shown, told apart and ended by their ids, never taken for another.

use std::path::{Path, PathBuf};

use e2e::{Case, Said, Verdict, World, ensure, say};
use serde_json::Value;

use crate::Named;
use crate::crowd::nothing_runs;

pub(crate) const CASES: &[Named] = &[
    ("a_sandbox_that_cannot_be_read_is_named_and_loses_nothing", unreadable),
    ("a_damaged_one_that_runs_is_shown_stopped_and_deleted_by_its_id", running),
    ("of_two_with_one_name_none_is_taken_without_a_word", twins),
    ("what_is_hinted_at_works", hints),
];

/// A project and a state folder of its own, whose listing has no other sandboxes.
struct Place<'w> {
    world: &'w World,
    folder: PathBuf,
    state: tempfile::TempDir,
}

impl<'w> Place<'w> {
    fn new(world: &'w World, project: &str) -> Result<Self, Verdict> {
        let state = tempfile::Builder::new().prefix("viv-state-").tempdir_in("/var/tmp")?;
        Ok(Self { world, folder: world.project(project), state })
    }

    fn viv(&self, arguments: &[&str]) -> Result<Said, Verdict> {
        let mut command = self.world.viv(&self.folder, arguments);
        command.env("XDG_STATE_HOME", self.state.path());
        say(command, b"")
    }

    /// What must end with 0; gives its output.
    fn ok(&self, arguments: &[&str]) -> Result<String, Verdict> {
        let said = self.viv(arguments)?;
        ensure(said.code == 0, format!("{arguments:?}: {said:?}"))?;
        Ok(said.text())
    }

    /// What must end with 125, one sentence with these words, and a hint, which is given back.
    fn refused(&self, arguments: &[&str], words: &[&str]) -> Result<String, Verdict> {
        let said = self.viv(arguments)?;
        let good = said.code == 125 && words.iter().all(|words| said.err.contains(words));
        let hint = said.err.lines().nth(1).and_then(|line| line.strip_prefix("  hint: "));
        match hint {
            Some(hint) if good && said.err.lines().count() == 2 => Ok(hint.to_owned()),
            _ => Err(Verdict::Wrong(format!("{arguments:?}: {said:?}"))),
        }
    }

    /// The id of a sandbox and the file with its spec.
    fn spec(&self, name: &str) -> Result<(String, PathBuf), Verdict> {
        let inspected: Value = serde_json::from_str(&self.ok(&["inspect", name])?)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((text(&inspected["id"]), Path::new(&text(&inspected["paths"]["folder"])).join("spec.json")))
    }
}

/// Files of a newer version and damaged ones: said with the next step, nothing is changed, and the others are there.
fn unreadable(world: &World) -> Case {
    let place = Place::new(world, "unreadable")?;
    for name in ["good", "other"] {
        place.ok(&["create", "shell", ".", "--name", name])?;
    }
    let (id, spec) = place.spec("other")?;
    let whole = std::fs::read_to_string(&spec)?;
    let newer = whole.replacen("\"schema\": 1", "\"schema\": 99", 1);
    let half = whole.get(..whole.len() / 2).unwrap_or_default().to_owned();
    for (text, words, hint) in [
        (newer.as_str(), "was written by a newer viv (format 99", "a newer one"),
        (half.as_str(), "is damaged", "viv rm -f "),
        ("", "is damaged", "viv rm -f "),
        ("[]", "is damaged", "viv rm -f "),
        ("{\"schema\": \"x\"}", "is damaged", "viv rm -f "),
    ] {
        std::fs::write(&spec, text)?;
        for verb in [&["exec", &id, "true"][..], &["start", &id], &["check", &id], &["attach", &id]] {
            let hinted = place.refused(verb, &[words, &id])?;
            ensure(hinted.contains(hint), format!("{verb:?} {text:?}: {hinted}"))?;
        }
        // A name, mistyped or its own, leads to no deletion of what nobody has named.
        for verb in [&["stop", "zzz"][..], &["rm", "-f", "other"], &["logs", "gooood"], &["rm", "-f", "goot"]]
        {
            let hinted = place.refused(verb, &["cannot be read"])?;
            ensure(!hinted.contains("rm") && !hinted.contains(&id), format!("{verb:?} {text:?}: {hinted}"))?;
        }
        let listed = place.viv(&["ls"])?;
        let row = listed.text().lines().any(|line| line.starts_with(&id));
        let good = listed.code == 0 && listed.text().contains("good") && row && listed.err.contains(words);
        ensure(good && listed.err.contains("viv diagnose"), format!("{listed:?}"))?;
        ensure(place.ok(&["ls", "-q"])? == format!("good\n{id}"), "each has a line")?;
        let listed = place.viv(&["ls", "--json"])?;
        let last: Value = serde_json::from_str(listed.text().lines().last().unwrap_or_default())?;
        let reason = last["reason"].as_str().unwrap_or_default();
        let good = last["id"] == *id && last["running"] == false && reason.contains(words);
        ensure(good && listed.err.is_empty(), format!("{listed:?}"))?;
        ensure(std::fs::read_to_string(&spec)? == text, "the file is as it was")?;
    }
    std::fs::write(&spec, &whole)?;
    ensure(place.ok(&["ls", "-q"])? == "good\nother", "nothing is lost")
}

fn running(world: &World) -> Case {
    let place = Place::new(world, "p2")?;
    place.ok(&["run", "-d", "shell", "."])?;
    let (id, spec) = place.spec("shell-p2")?;
    std::fs::write(&spec, "")?;
    let row = place.ok(&["ls"])?;
    ensure(row.contains(&id) && row.contains("damaged, running"), row)?;
    place.ok(&["logs", &id])?;
    let found: Value = serde_json::from_str(&place.ok(&["diagnose", "--json"])?)?;
    let mend = found["damaged"][0]["mend"].as_str().unwrap_or_default();
    ensure(mend.starts_with(&format!("viv rm -f {id} ")), format!("{found}"))?;
    // Nobody can say that it is not this folder's.
    for verb in ["run", "create"] {
        let hint = place.refused(&[verb, "shell", "."], &["runs", &id])?;
        ensure(hint.starts_with(&format!("viv stop {id},")), hint)?;
    }
    ensure(place.ok(&["stop", &id])? == id, "it is stopped")?;
    nothing_runs(place.state.path())?;
    let row = place.ok(&["ls"])?;
    ensure(row.contains("damaged ") && !row.contains("running"), row)?;
    // The same while another one runs, which is damaged then.
    place.ok(&["run", "-d", "shell", "."])?;
    let (second, spec) = place.spec("shell-p2")?;
    std::fs::write(&spec, "{")?;
    ensure(place.ok(&["rm", "-f", &id, &second])? == format!("{id}\n{second}"), "both are deleted")?;
    ensure(place.ok(&["ls", "-q", "--json"])?.trim_matches(['[', ']']).is_empty(), "nothing is listed")?;
    nothing_runs(place.state.path())
}

fn twins(world: &World) -> Case {
    let place = Place::new(world, "p3")?;
    place.ok(&["create", "shell", "."])?;
    let (first, spec) = place.spec("shell-p3")?;
    let whole = std::fs::read(&spec)?;
    std::fs::write(&spec, "")?;
    place.ok(&["create", "shell", "."])?;
    let (second, _) = place.spec("shell-p3")?;
    std::fs::write(&spec, whole)?;
    for verb in [
        &["exec", "shell-p3", "true"][..],
        &["attach", "shell-p3"],
        &["start", "shell-p3"],
        &["stop", "shell-p3"],
        &["rm", "-f", "shell-p3"],
        &["logs", "shell-p"],
        &["inspect", "shell-p3"],
        &["check", "shell-p3"],
        &["cp", "shell-p3:/etc/hostname", "."],
        &["run", "shell", "."],
        &["create", "shell", "."],
    ] {
        place.refused(verb, &[&first, &second])?;
    }
    let mut ids = [first.as_str(), &second];
    ids.sort_unstable();
    ensure(place.ok(&["ls", "-q"])? == ids.join("\n"), "each goes by its id")?;
    // The second one alone is started, by its id.
    ensure(place.ok(&["exec", &second, "hostname"])? == "shell-p3", "it has its name")?;
    let state = |id: &str| Ok::<_, Verdict>(serde_json::from_str::<Value>(&place.ok(&["inspect", id])?)?);
    ensure(
        state(&second)?["state"] == "running" && state(&first)?["state"] == "stopped",
        "the right one runs",
    )?;
    place.refused(&["rm", "-f", &second[..8]], &["beginning"])?;
    place.ok(&["rm", "-f", &second])?;
    ensure(place.ok(&["ls", "-q"])? == "shell-p3", "it has its name for itself")?;
    place.ok(&["rm", "-f", "shell-p3"]).map(|_| ())
}

/// Commands that are hinted at are typed as they stand there.
fn hints(world: &World) -> Case {
    let place = Place::new(world, "api")?;
    std::fs::create_dir_all(place.folder.join("../my data"))?;
    let typed = |hint: &str| {
        let line = hint.split("   ").next().unwrap_or_default();
        let line = format!("viv() {{ '{}' \"$@\"; }}; {line} </dev/null", world.program().display());
        let mut command = std::process::Command::new("sh");
        world.environment(&mut command, &place.folder);
        command.args(["-c", &line]).env("XDG_STATE_HOME", place.state.path());
        let said = say(command, b"")?;
        ensure(said.code == 0, format!("{line}: {said:?}"))
    };
    let words = ["create", "shell", "--name", "box", ".", "../my data:ro"];
    place.ok(&words[..5])?;
    // Not running, and running without the further folder.
    let hint = place.refused(&words, &["box is there already"])?;
    place.ok(&["run", "-d", "shell", "--name", "box", "."])?;
    let hint_running = place.refused(&words, &["box is there already"])?;
    ensure(
        hint.starts_with("viv run ") && hint_running.starts_with("viv stop box && viv run "),
        hint_running.clone(),
    )?;
    typed(&hint_running)?;
    let shares: Value = serde_json::from_str(&place.ok(&["inspect", "box"])?)?;
    let shares = &shares["shares"];
    ensure(shares[1]["read_only"] == true && shares[2].is_null(), shares.to_string())?;
    // Now with them: nothing that would change it is hinted at.
    let hint = place.refused(&words, &["box is there already"])?;
    ensure(hint.starts_with("viv attach box "), hint)?;
    // A beginning asks for the whole name, which is what is hinted at.
    let hint = place.refused(&["rm", "-f", "bo"], &["beginning"])?;
    ensure(hint == "viv rm -f box", hint.clone())?;
    typed(&hint)?;
    ensure(place.ok(&["ls", "-q"])?.is_empty(), "it is deleted")
}
