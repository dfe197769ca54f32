//! Command lines as a person can type them.

/// `viv policy VERB`, with the sandbox unless the name is empty.
pub(crate) fn start(verb: &str, sandbox: &str) -> Vec<String> {
    let mut words: Vec<String> = ["viv", "policy", verb].map(str::to_owned).into();
    if !sandbox.is_empty() {
        words.extend(["--sandbox".to_owned(), sandbox.to_owned()]);
    }
    words
}

/// The words as a POSIX shell takes them apart again.
pub fn line(words: &[impl AsRef<str>]) -> String {
    words.iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@%+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_the_words_back() {
        let words: Vec<String> =
            ["viv", "**", "a'b", "$(rm -rf /)", "", "[::1]:80", "a b", "`x`", "~"].map(str::to_owned).into();
        let script = format!("printf '%s\\n' {}", line(&words));
        let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap().lines().collect::<Vec<_>>(), words);
    }
}
