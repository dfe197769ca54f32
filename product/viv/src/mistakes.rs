//! A command line that cannot be understood, in the words of every other failure: one sentence, and what to type instead.
//! Who comes from Docker finds here what is called otherwise.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::Cli;
use crate::failure::Failure;

/// Commands of Docker and its like, and what does it here.
const COMMANDS: [(&[&str], &str); 10] = [
    (&["ps"], "viv ls lists the sandboxes; viv exec NAME ps aux the processes in one"),
    (&["kill"], "viv stop NAME shuts a sandbox down; viv rm -f NAME ends it and deletes it"),
    (&["restart", "reboot"], "viv stop NAME, then  viv start NAME"),
    (&["delete", "remove", "destroy"], "viv rm NAME deletes a sandbox with its disk"),
    (&["ssh", "enter", "connect"], "viv attach NAME opens a session; viv exec NAME COMMAND runs a command"),
    (&["shell"], "viv run shell opens one in this folder, viv attach NAME one in a sandbox that is there"),
    (&["up"], "viv run shell makes the sandbox of this folder, or goes on with it"),
    (&["down"], "viv stop NAME; its disk stays for the next start"),
    (&["build", "pull", "images"], "a sandbox has a Docker of its own:  viv exec NAME docker images"),
    (&["info", "doctor", "status"], "viv diagnose says what this host can do; viv ls what the sandboxes do"),
];

/// Options of Docker and its like: the verbs, the options, and what to do instead.
const OPTIONS: [(&[&str], &[&str], &str); 9] = [
    (&["run"], &["--rm"], "a sandbox is kept for the next time; viv rm NAME deletes it with its disk"),
    (
        &["run", "create"],
        &["--volume", "--mount"],
        "folders are named behind the agent:  viv run shell . /data:ro",
    ),
    (&["run", "attach"], &["-u", "--user", "-w", "--workdir"], "viv exec has it:  viv exec -it NAME bash"),
    (&["ls"], &["-a", "--all"], "viv ls lists all, the stopped ones too"),
    (&["stop", "rm", "start"], &["-a", "--all"], "name them all:  $(viv ls -q)"),
    (&["stop"], &["-t", "--time", "--timeout"], "processes get ten seconds to end, the disk what it takes"),
    (&["logs"], &["-t", "--timestamps"], "each line has its time anyway"),
    (
        &["ls"],
        &["--format", "--filter"],
        "viv ls --json is for programs such as jq; viv ls -q has only names",
    ),
    (&["inspect"], &["-f", "--format"], "jq takes one thing out:  viv inspect NAME | jq .state"),
];

/// What the options take whose values are numbers.
const NUMBERS: [(&str, &str); 2] = [
    ("--cpus", "--cpus 2; without it a sandbox has all CPUs of the host"),
    ("--tail", "-n 20 shows the last 20 lines; without it all are shown"),
];

/// Options that exclude each other, and why.
const CONFLICTS: [(&str, &str, &str); 4] = [
    ("--ask", "--observe", "what no rule speaks of is either asked about or let through"),
    ("--ask", "--detach", "without a session nobody is there to be asked"),
    ("--observe", "--detach", "without a session there is no end at which the rules could be printed"),
    ("--totals", "--follow", "sums have an end"),
];

/// What is wrong with these words, the first of them the program's own name; none where the parser's own text is as good.
pub(crate) fn explain(error: &clap::Error, words: &[OsString]) -> Option<Failure> {
    let (verb, help) = verb(words);
    let all = format!("{verb} --help says what it takes");
    let given = text(error, ContextKind::InvalidArg);
    let failure = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = text(error, ContextKind::InvalidSubcommand)?;
            let names: Vec<&str> = help.get_subcommands().map(clap::Command::get_name).collect();
            let failure = Failure::new(format!("{verb} has no command \"{name}\""));
            let known = COMMANDS.iter().find(|(names, _)| verb == "viv" && names.contains(&&*name));
            match (known, sandbox::naming::nearest(&name, &names)) {
                (Some((_, instead)), _) => failure.hint(instead),
                (None, Some(name)) => failure.hint(format!("did you mean {name}?  {verb} --help lists all")),
                (None, None) => failure.hint(format!("{verb} --help lists all")),
            }
        }
        ErrorKind::UnknownArgument => {
            let given = given?;
            if !given.starts_with('-') {
                return Some(Failure::new(format!("{verb} has no use for \"{given}\"")).hint(all));
            }
            let failure = Failure::new(format!("{verb} has no option {given}"));
            let is_it = |(verbs, options, _): &&(&[&str], &[&str], &str)| {
                verb.strip_prefix("viv ").is_some_and(|verb| verbs.contains(&verb))
                    && options.contains(&&*given)
            };
            match (OPTIONS.iter().find(is_it), text(error, ContextKind::SuggestedArg)) {
                (Some((.., instead)), _) => failure.hint(instead),
                (None, Some(near)) => failure.hint(format!("did you mean {near}?  {all}")),
                (None, None) => failure.hint(all),
            }
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let given = given?;
            let (option, kind) = given.split_once(' ').unwrap_or((&given, ""));
            let value = text(error, ContextKind::InvalidValue).unwrap_or_default();
            if value.is_empty() {
                return Some(
                    Failure::new(format!("{option} needs a value")).hint(format!("{option} {}", bare(kind))),
                );
            }
            let number = NUMBERS.iter().find(|(name, _)| *name == option);
            match (number, text(error, ContextKind::ValidValue)) {
                (Some((_, hint)), _) => Failure::new(format!(
                    "{option} takes a whole number, and \"{value}\" is none that it can be"
                ))
                .hint(hint),
                (None, Some(valid)) if !valid.is_empty() => {
                    Failure::new(format!("{option} cannot be \"{value}\"")).hint(format!("it can be {valid}"))
                }
                (None, _) => {
                    let why = std::error::Error::source(error).map(|source| format!(": {source}"));
                    Failure::new(format!("{option} cannot be \"{value}\"{}", why.unwrap_or_default()))
                        .hint(all)
                }
            }
        }
        ErrorKind::ArgumentConflict => {
            let bare = |text: String| bare(text.split(' ').next().unwrap_or_default());
            let (given, other) = (bare(given?), bare(text(error, ContextKind::PriorArg)?));
            let pair = [given.as_str(), &other];
            let known = CONFLICTS.iter().find(|(a, b, _)| pair == [*a, *b] || pair == [*b, *a]);
            let sentence = match known {
                Some((one, other, why)) => format!("{one} and {other} exclude each other: {why}"),
                None => format!("{given} and {other} exclude each other"),
            };
            Failure::new(sentence).hint(all)
        }
        ErrorKind::MissingRequiredArgument => {
            let usage = text(error, ContextKind::Usage).unwrap_or_default();
            let usage = usage.trim_start_matches("Usage:").trim();
            // Named as the user called it, maybe with a path.
            let usage = usage.split_once(' ').map_or("", |(_, rest)| rest);
            Failure::new(format!("{verb} needs {}", bare(&given?))).hint(format!("viv {usage}"))
        }
        _ => return None,
    };
    Some(failure)
}

/// The command that the words lead to, as it is typed, and what it takes.
fn verb(words: &[OsString]) -> (String, clap::Command) {
    let (mut name, mut command) = (String::from("viv"), Cli::command());
    let plain = words.iter().skip(1).filter_map(|word| word.to_str()).filter(|word| !word.starts_with('-'));
    for word in plain {
        let Some(found) = command.find_subcommand(word) else { break };
        let found = found.clone();
        name = format!("{name} {}", found.get_name());
        command = found;
    }
    (name, command)
}

/// Placeholders without their brackets: `NAME, COMMAND`.
fn bare(text: &str) -> String {
    text.replace(['<', '>', '[', ']'], "").replace("...", "")
}

/// What the parser knows of one thing; several are told with commas.
fn text(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(all) => Some(all.join(", ")),
        ContextValue::StyledStr(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(line: &str) -> (String, String) {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&words).unwrap_err();
        let failure = explain(&error, &words).unwrap_or_else(|| panic!("{line}: {error}"));
        let text = failure.text();
        let (sentence, hint) =
            text.trim_end().split_once("\n  hint: ").unwrap_or_else(|| panic!("{line}: {text}"));
        (sentence.to_owned(), hint.to_owned())
    }

    #[test]
    fn every_mistake_has_one_sentence_and_what_to_type_instead() {
        for (line, sentence, hint) in [
            ("viv ps", "viv has no command \"ps\"", "viv ls lists"),
            ("viv lss", "viv has no command \"lss\"", "did you mean ls?"),
            ("viv -v rstart", "viv has no command \"rstart\"", "did you mean start?"),
            ("viv frobnicate", "viv has no command \"frobnicate\"", "viv --help lists all"),
            ("viv run --rm shell", "viv run has no option --rm", "viv rm NAME"),
            ("viv run --cpu 2 shell", "viv run has no option --cpu", "did you mean --cpus?"),
            ("viv list -a", "viv ls has no option -a", "lists all"),
            ("viv ls foo", "viv ls has no use for \"foo\"", "viv ls --help"),
            ("viv stop -x foo", "viv stop has no option -x", "viv stop --help"),
            ("viv logs -n -1 box", "--tail takes a whole number, and \"-1\" is none", "-n 20"),
            ("viv run --cpus abc shell", "--cpus takes a whole number, and \"abc\" is none", "--cpus 2"),
            ("viv run --cpus=-1 shell", "--cpus takes a whole number, and \"-1\" is none", "--cpus 2"),
            (
                "viv run --observe --ask shell",
                "--ask and --observe exclude each other: what no rule speaks of is either asked",
                "viv run --help",
            ),
            ("viv run --ask -d shell", "--ask and --detach exclude each other: without", "viv run --help"),
            ("viv run -d --observe shell", "--observe and --detach exclude each other: wi", "viv run --help"),
            (
                "viv policy log --totals -f",
                "--totals and --follow exclude each other: sums",
                "viv policy log",
            ),
            ("viv run --name", "--name needs a value", "--name NAME"),
            ("viv run", "viv run needs AGENT", "viv run <AGENT>"),
            ("viv exec box", "viv exec needs COMMAND", "viv exec <NAME> <COMMAND>"),
            ("viv exec", "viv exec needs NAME, COMMAND", "viv exec <NAME> <COMMAND>"),
            ("viv cp a", "viv cp needs TO", "viv cp <FROM> <TO>"),
        ] {
            let (sentences, hints) = said(line);
            assert!(sentences.starts_with(&format!("error: {sentence}")), "{line}: {sentences}");
            assert!(hints.contains(hint) && !hints.contains('\n'), "{line}: {hints}");
        }
    }

    #[test]
    fn what_is_told_of_other_names_is_no_command_or_option_here() {
        let command = Cli::command();
        for name in COMMANDS.iter().flat_map(|(names, _)| *names) {
            assert!(command.find_subcommand(name).is_none(), "{name}");
        }
        for (verbs, options, _) in OPTIONS {
            for (verb, option) in
                verbs.iter().flat_map(|verb| options.iter().map(move |option| (verb, option)))
            {
                let line = format!("viv {verb} {option}");
                let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{line}");
            }
        }
    }

    #[test]
    fn help_is_left_as_it_is() {
        for line in ["viv", "viv --help", "viv run --help", "viv --version"] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert!(explain(&Cli::try_parse_from(&words).unwrap_err(), &words).is_none(), "{line}");
        }
    }
}
