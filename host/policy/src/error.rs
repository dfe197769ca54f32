//! What is wrong with a text that a person wrote, and at which column.

use std::fmt;

/// Characters of the text that are repeated in the sentence.
const SHOWN: usize = 100;

/// A rule, host, port, network, method or path that could not be read: one sentence with the column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    input: String,
    column: usize,
    problem: String,
}

impl SyntaxError {
    /// `offset` is counted in characters from 0.
    pub(crate) fn new(input: &str, offset: usize, problem: impl Into<String>) -> Self {
        let column = offset.min(input.chars().count()) + 1;
        Self { input: input.to_owned(), column, problem: problem.into() }
    }

    /// The same trouble, seen from the longer text that this one is a piece of, `by` characters from its start.
    pub(crate) fn within(self, input: &str, by: usize) -> Self {
        Self::new(input, self.column.saturating_sub(1).saturating_add(by), self.problem)
    }

    /// The column of the first character that does not fit, in characters from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.column
    }

    /// What is wrong and what was expected, without the text and the column.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\", column {}: {}", shown(&self.input), self.column, self.problem)
    }
}

impl std::error::Error for SyntaxError {}

/// A text as it can be shown on a terminal: one line, no control characters, not endless.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN).flat_map(printable).collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// A character in quotes for an error, escaped when it cannot be seen.
pub(crate) fn quoted(c: char) -> String {
    let inner: String = printable(c).collect();
    format!("'{inner}'")
}

/// The character itself, or its escape where a terminal would act on it or not show it: controls, bidirectional marks.
fn printable(c: char) -> impl Iterator<Item = char> {
    let hidden = c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let (plain, escaped) = if hidden { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escaped.into_iter().flatten())
}

/// The number of characters before a byte offset.
pub(crate) fn column_of(text: &str, byte: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_one_bounded_line() {
        let error = SyntaxError::new("a\n\u{1b}[2J\u{202e}b", 1, format!("found {}", quoted('\u{1b}')));
        assert_eq!(error.to_string(), r#""a\n\u{1b}[2J\u{202e}b", column 2: found '\u{1b}'"#);
        let long = SyntaxError::new(&"x".repeat(5000), 4999, "too long");
        assert!(long.to_string().chars().count() < 160);
        assert_eq!(column_of("bücher.example", 3), 2);
    }
}
