//! What the program says of itself, asked as a user asks. (Cargo makes the program for a test like this one, beside all else, and the
//! suites that drive it find it made.)

use std::process::Command;

/// What `viv WORDS --help` prints.
fn help(words: &[String]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_viv")).args(words).arg("--help").output().expect("viv runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The commands that a help lists.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| line.starts_with("  "));
    let names = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect()
}

/// Every command's help has examples, and these name commands that there are.
#[test]
fn every_command_has_examples_and_they_are_of_commands_that_there_are() {
    let mut waiting = vec![Vec::new()];
    let mut seen = 0;
    let all = commands(&help(&[]));
    while let Some(words) = waiting.pop() {
        let text = help(&words);
        let examples: Vec<&str> = text
            .lines()
            .skip_while(|line| *line != "Examples:")
            .skip(1)
            .take_while(|line| line.starts_with("  "))
            .collect();
        assert!(!examples.is_empty(), "viv {words:?} --help has no examples");
        for example in examples {
            let Some((_, rest)) = example.split_once("viv ") else { continue };
            let command = rest.split(' ').find(|word| !word.starts_with('-')).unwrap_or_default();
            assert!(all.iter().any(|known| known == command), "viv {words:?} --help: {example}");
        }
        seen += 1;
        waiting.extend(commands(&text).into_iter().map(|name| [words.clone(), vec![name]].concat()));
    }
    assert!(seen > 30, "{seen} commands");
}
