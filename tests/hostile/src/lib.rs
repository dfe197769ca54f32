//! A `viv` whose vmm tries to break out, and what came of it.
//!
//! The program is built with the feature `hostile-hook`, which only a debug build can have, into a folder of its own. Its
//! vmm confines itself as always and then makes the one attempt that `VIV_HOSTILE` names, as code that a guest took over
//! would. Nothing is needed of the guest but its image, which must be there.

pub mod evil;
mod far;
pub mod recorder;
pub mod workload;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use confine::{Attempt, End, Role};

/// A debug build in `folder`, made in a third of the time: nobody looks at it with a debugger, and it computes nothing that takes
/// long. The guest's agent is that of the `viv` that was made in the folder around.
fn cargo(command: &str, package: &str, folder: &Path) -> Command {
    let mut cargo = e2e::cargo();
    cargo
        .args([command, "--package", package, "--features", "hostile-hook", "--target-dir"])
        .arg(folder)
        .args(["--config", "profile.dev.package.\"*\".opt-level=0", "--config", "profile.dev.debug=0"])
        .envs(agent(folder).map(|agent| ("VIV_AGENT", agent)))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// The newest agent beside, if there is one.
fn agent(folder: &Path) -> Option<PathBuf> {
    let made = std::fs::read_dir(folder.parent()?.join("release/build")).ok()?.flatten();
    let agents = made.map(|entry| entry.path().join("out/agent"));
    let dated = agents.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    dated.max().map(|(_, path)| path)
}

/// Runs `confine`'s own test of the same attempts: that they succeed in a free process, that what is granted works, and
/// that each part of the confinement stops what it is there for. It needs the feature, so it is built in this folder.
///
/// # Errors
/// What the test printed, if it failed.
pub fn confined(folder: &Path) -> Result<(), String> {
    let output = cargo("test", "confine", folder)
        .args(["--test", "confined"])
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// The hostile program and the cache with the image.
#[derive(Debug)]
pub struct Hostile {
    viv: PathBuf,
    cache: PathBuf,
}

impl Hostile {
    /// Builds the program into `target`, and looks for the image that the end-to-end tests keep there (or in the folder
    /// that `VIV_E2E_CACHE` names).
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn prepare(target: &Path) -> Result<Self, String> {
        let cache = e2e::cache_home();
        let images = cache.join("vivarium/images");
        if !std::fs::read_dir(&images).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(format!("there is no image in {} (the test e2e makes one)", images.display()));
        }
        let folder = target.join("hostile");
        let status = cargo("build", "viv", &folder).status().map_err(|error| format!("cargo: {error}"))?;
        let viv = folder.join("debug/viv");
        if status.success() && viv.is_file() {
            Ok(Self { viv, cache })
        } else {
            Err("the hostile viv could not be built".into())
        }
    }

    /// Lets a vmm make one attempt; gives the line of a log that says how it ended.
    ///
    /// # Errors
    /// The attempt did not end as it must, or was not made; with everything that was logged.
    pub fn attempt(&self, attempt: &Attempt) -> Result<String, String> {
        let text = |error: std::io::Error| error.to_string();
        let home = tempfile::Builder::new().prefix("viv-hostile-").tempdir_in("/var/tmp").map_err(text)?;
        let project = home.path().join("project");
        std::fs::create_dir(&project).map_err(text)?;
        let asked = format!("{} {}", attempt.name, home.path().join("ground").display());
        let run = |arguments: &[&str]| {
            Command::new(&self.viv)
                .args(arguments)
                .env_clear()
                .env("HOME", home.path())
                .env("XDG_CACHE_HOME", &self.cache)
                .env("PATH", "/usr/bin:/bin")
                .env("VIV_HOSTILE", &asked)
                .current_dir(&project)
                .stdin(Stdio::null())
                .output()
        };
        let output = run(&["run", "shell", ".", "--cpus", "1", "--memory", "512m", "--", "-c", "true"])
            .map_err(text)?;
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        collect_logs(&home.path().join(".local/state"), &mut said);
        // The folder is deleted with everything in it; what may still run must not be in it.
        let _ = run(&["rm", "--force", "shell-project"]);
        judge(attempt.name, attempt.end(Role::Vmm), output.status.success(), &said)
    }
}

/// Adds the text of every log beneath a folder.
fn collect_logs(folder: &Path, said: &mut String) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_logs(&path, said);
        } else if path.extension().is_some_and(|end| end == "log") {
            said.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()));
        }
    }
}

/// Finds in the logs how the attempt ended, which must be this end.
fn judge(name: &str, end: End, ran: bool, said: &str) -> Result<String, String> {
    let tried = said.contains(&format!("hostile: confined, trying {name}\n"));
    let line = |wanted: &str| said.lines().find(|line| line.contains(wanted));
    let refused = line(&format!("hostile: {name} was refused"));
    let how = match end {
        End::Killed => line("SIGSYS").filter(|_| refused.is_none()),
        End::Refused(errno) => line(&format!("hostile: {name} was refused with Some({errno})")),
    };
    match how {
        Some(how) if tried && !ran && !said.contains("BROKE OUT") => Ok(how.to_owned()),
        _ => Err(format!("{name} did not end with {end:?}, or was not tried:\n{said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIED: &str = "hostile: confined, trying fork\n";

    #[test]
    fn only_an_attempt_that_was_made_and_ended_as_it_must_counts() {
        let killed = format!("{TRIED}ended with signal: 31 (SIGSYS)");
        let refused = format!("{TRIED}hostile: fork was refused with Some(13)");
        let access = End::Refused(13);
        assert!(judge("fork", End::Killed, false, &killed).is_ok());
        assert!(judge("fork", access, false, &refused).is_ok());
        for (end, ran, said) in [
            (End::Killed, false, "ended with signal: 31 (SIGSYS)"),
            (End::Killed, false, &*format!("{TRIED}hostile: fork BROKE OUT")),
            (End::Killed, true, &killed),
            (access, true, &refused),
            (End::Killed, false, TRIED),
            // The wrong end is none.
            (End::Killed, false, &refused),
            (End::Refused(1), false, &refused),
            (access, false, &killed),
        ] {
            assert!(judge("fork", end, ran, said).is_err(), "{end:?} {ran} {said}");
        }
    }
}
