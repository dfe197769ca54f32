//! The agent's errors: a sentence for people with its cause. Nobody branches on them; they end in a status message or a log line.

use std::fmt::{self, Display};

/// What went wrong, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(String);

/// What the agent's own steps return.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Outcome<T> {
        self.map_err(|e| Failure(format!("{what}: {}", without_number(&e.to_string()))))
    }
}

/// An error's text without the number that the standard library puts behind it: people have no use for it.
pub(crate) fn without_number(text: &str) -> &str {
    let Some((words, number)) = text.rsplit_once(" (os error ") else { return text };
    let only_a_number =
        number.strip_suffix(')').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if only_a_number { words } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_for_people() {
        let error = std::io::Error::from_raw_os_error(libc::ENOENT);
        let failure = Err::<(), _>(error).doing("Cannot enter /x").expect_err("it failed");
        assert_eq!(failure.to_string(), "Cannot enter /x: No such file or directory");
        for whole in ["plain", "odd (os error x)", "odd (os error 2) more", " (os error )"] {
            assert_eq!(without_number(whole), whole);
        }
    }
}
