//! What runc is asked to do, as far as it matters here: which description a command goes by.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The options before the command that have a value as the next word (runc(8)).
const GLOBAL: [&str; 5] = ["log", "log-format", "root", "criu", "rootless"];
/// Where runc keeps its containers' state unless it is told otherwise.
const ROOT: &str = "/run/runc";

/// What is to be edited.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// The container in this bundle is about to be made.
    Container {
        /// The folder of `config.json`.
        bundle: PathBuf,
    },
    /// A process is about to be started in a container.
    Process {
        /// Its description.
        file: PathBuf,
        /// The container's state.
        state: PathBuf,
    },
}

/// One word as an option: its name, and its value when that is in the same word.
fn option(word: &OsStr) -> Option<(&str, Option<&str>)> {
    let word = word.to_str()?;
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    Some(name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value))))
}

/// The last value of an option that goes by one of these names.
fn value_of(words: &[OsString], names: &[&str]) -> Option<PathBuf> {
    let mut found = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match option(word) {
            Some((name, Some(value))) if names.contains(&name) => found = Some(value.into()),
            Some((name, None)) if names.contains(&name) => found = words.next().map(PathBuf::from),
            _ => {}
        }
    }
    found
}

/// What a command line (without the program's name) wants edited, if anything.
pub(super) fn find(arguments: &[OsString]) -> Option<Edit> {
    let mut at = 0;
    while let Some((name, value)) = option(arguments.get(at)?) {
        let apart = value.is_none() && GLOBAL.contains(&name);
        at = at.saturating_add(if apart { 2 } else { 1 });
    }
    let (before, rest) = arguments.split_at_checked(at)?;
    let (command, words) = rest.split_first()?;
    match command.to_str()? {
        "create" | "run" => {
            let bundle = value_of(words, &["bundle", "b"]).unwrap_or_else(|| ".".into());
            Some(Edit::Container { bundle })
        }
        "exec" => {
            let file = value_of(words, &["process", "p"])?;
            let root = value_of(before, &["root"]).unwrap_or_else(|| ROOT.into());
            // With a description there is no command on the line: the container's name is the last word.
            let name = PathBuf::from(words.last()?);
            let state = root.join(name.file_name()?).join("state.json");
            Some(Edit::Process { file, state })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<Edit> {
        find(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn container(bundle: &str) -> Option<Edit> {
        Some(Edit::Container { bundle: bundle.into() })
    }

    #[test]
    fn dockers_and_buildkits_lines_are_understood() {
        let docker = "--root /var/run/docker/runtime-runc/moby --log /run/b/log.json --log-format json";
        assert_eq!(
            found(&format!("{docker} --systemd-cgroup create --bundle /run/b --pid-file /run/b/init.pid c1")),
            container("/run/b")
        );
        assert_eq!(
            found("--log-format json --root=/r run --bundle /var/lib/docker/x --keep c1"),
            container("/var/lib/docker/x")
        );
        assert_eq!(found("--debug -root /r run -b /x c1"), container("/x"));
        assert_eq!(found("create --bundle=/x c1"), container("/x"));
        assert_eq!(found("run c1"), container("."));
        assert_eq!(
            found(&format!("{docker} exec --process /tmp/p --console-socket /s --detach --pid-file /f c1")),
            Some(Edit::Process {
                file: "/tmp/p".into(),
                state: "/var/run/docker/runtime-runc/moby/c1/state.json".into()
            })
        );
        assert_eq!(
            found("exec -p /tmp/p ../../c1"),
            Some(Edit::Process { file: "/tmp/p".into(), state: "/run/runc/c1/state.json".into() })
        );
    }

    #[test]
    fn everything_else_is_left_alone() {
        for line in [
            "",
            "--version",
            "--root",
            "--root create",
            "start c1",
            "--root /r delete --force c1",
            "exec c1 sh",
            "exec -p",
            "exec --process /p ..",
            "features",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
        assert_eq!(find(&[OsString::from("create"), "--bundle".into()]), container("."));
    }
}
