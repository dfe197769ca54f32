//! Patterns of names: `example.com`, `*.example.com`, `**.example.com`, `api?.example.com`, `api[12].example.com`.

use std::fmt;

use crate::error::{SyntaxError, quoted};
use crate::glob::{self, Token};
use crate::name::{Name, check_label, is_name_character, like_an_address};

/// A pattern of names. The apex is never part of `*.x` or `**.x`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    /// `**.` in front: one or more further labels.
    deep: bool,
    labels: Vec<Label>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Label {
    Literal(Box<str>),
    /// `*` alone: one label.
    Any,
    Glob(Vec<Token>),
}

impl NamePattern {
    /// The pattern of one name.
    #[must_use]
    pub fn exact(name: &Name) -> Self {
        Self { deep: false, labels: name.labels().map(|label| Label::Literal(label.into())).collect() }
    }

    /// Reads a pattern; `**` alone is none, it is everything.
    pub(crate) fn parse(text: &str) -> Result<Self, SyntaxError> {
        if !text.contains(['*', '?', '[', ']']) {
            return Name::parse(text).map(|name| Self::exact(&name));
        }
        if text == "*" {
            return Err(SyntaxError::new(
                text,
                0,
                "a lone '*' is no rule; expected '**' for everything or '*.' and a name",
            ));
        }
        let body = text.strip_suffix('.').unwrap_or(text);
        let (deep, rest, mut offset) = match body.strip_prefix("**.") {
            Some(rest) => (true, rest, 3),
            None => (false, body, 0),
        };
        let mut labels = Vec::new();
        for piece in rest.split('.') {
            labels.push(parse_label(piece).map_err(|error| error.within(text, offset))?);
            offset += piece.chars().count() + 1;
        }
        let pattern = Self { deep, labels };
        pattern.check(text)?;
        Ok(pattern)
    }

    /// What concerns more than one label: wildcards over addresses, and what no name can fit.
    fn check(&self, text: &str) -> Result<(), SyntaxError> {
        let numeric = |label: &Label| match label {
            Label::Literal(literal) => literal.bytes().all(|b| b.is_ascii_digit()),
            Label::Any => true,
            Label::Glob(tokens) => tokens.iter().all(|token| match token {
                Token::Literal(c) => c.is_ascii_digit(),
                _ => true,
            }),
        };
        if self.labels.iter().all(numeric) && self.labels.iter().any(|l| matches!(l, Label::Literal(_))) {
            return Err(SyntaxError::new(
                text,
                text.chars().position(|c| matches!(c, '*' | '?' | '[')).unwrap_or_default(),
                "addresses take no wildcards; expected a network such as 192.168.1.0/24",
            ));
        }
        if let Some(Label::Literal(last)) = self.labels.last()
            && let Some((_, problem)) = like_an_address(last)
        {
            let at = text.trim_end_matches('.').chars().count().saturating_sub(last.len());
            return Err(SyntaxError::new(text, at, problem));
        }
        let shortest: usize = self.labels.iter().map(|label| label.shortest() + 1).sum();
        if shortest > 253 {
            return Err(SyntaxError::new(text, 253, "no host name is as long as this pattern"));
        }
        Ok(())
    }

    /// Whether a name fits.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let mut labels = name.labels().rev();
        for pattern in self.labels.iter().rev() {
            match labels.next() {
                Some(label) if pattern.matches(label) => {}
                _ => return false,
            }
        }
        labels.next().is_some() == self.deep
    }

    /// The longest end of the pattern without wildcards: what every name that fits ends with (label by label), or
    /// nothing.
    pub(crate) fn suffix(&self) -> String {
        let mut literals: Vec<&str> = self
            .labels
            .iter()
            .rev()
            .map_while(|label| match label {
                Label::Literal(literal) => Some(&**literal),
                Label::Any | Label::Glob(_) => None,
            })
            .collect();
        literals.reverse();
        literals.join(".")
    }
}

impl Label {
    fn matches(&self, label: &str) -> bool {
        match self {
            Label::Literal(literal) => **literal == *label,
            Label::Any => true,
            Label::Glob(tokens) => glob::matches(tokens, label),
        }
    }

    fn shortest(&self) -> usize {
        match self {
            Label::Literal(literal) => literal.len(),
            Label::Any => 1,
            Label::Glob(tokens) => tokens.iter().filter(|token| **token != Token::Run).count(),
        }
    }
}

fn parse_label(piece: &str) -> Result<Label, SyntaxError> {
    if piece == "*" {
        return Ok(Label::Any);
    }
    if piece == "**" {
        return Err(SyntaxError::new(piece, 0, "'**' stands only at the start, as in **.example.com"));
    }
    if !piece.contains(['*', '?', '[', ']']) {
        if piece.is_ascii() {
            check_characters(piece)?;
            let lower = piece.to_ascii_lowercase();
            check_label(&lower).map_err(|problem| SyntaxError::new(piece, 0, problem))?;
            if !lower.starts_with("xn--") {
                return Ok(Label::Literal(lower.into()));
            }
        }
        // One label of a name is a name; its end may be a number here.
        let name = Name::parse(&format!("{piece}.x"))
            .map_err(|error| SyntaxError::new(piece, error.column().saturating_sub(1), error.problem()))?;
        return match name.as_str().strip_suffix(".x") {
            Some(label) if !label.contains('.') => Ok(Label::Literal(label.into())),
            _ => Err(SyntaxError::new(piece, 0, "this is not one label of a name")),
        };
    }
    parse_glob(piece)
}

fn check_characters(piece: &str) -> Result<(), SyntaxError> {
    match piece.chars().enumerate().find(|(_, c)| !is_name_character(*c)) {
        Some((at, c)) => Err(unexpected(piece, at, c)),
        None => Ok(()),
    }
}

fn unexpected(piece: &str, at: usize, c: char) -> SyntaxError {
    let wild = "expected a letter, a digit, '-', '_', '.' or a wildcard (*, ?, [12])";
    if c.is_ascii() {
        SyntaxError::new(piece, at, format!("{} cannot stand in a host pattern; {wild}", quoted(c)))
    } else {
        SyntaxError::new(piece, at, "a label with wildcards is ASCII; expected its xn-- form")
    }
}

fn parse_glob(piece: &str) -> Result<Label, SyntaxError> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut chars = piece.chars().enumerate();
    while let Some((at, c)) = chars.next() {
        let token = match c {
            '*' if tokens.last() == Some(&Token::Run) => {
                return Err(SyntaxError::new(
                    piece,
                    at,
                    "'**' stands only at the start, as in **.example.com",
                ));
            }
            '*' => Token::Run,
            '?' => Token::One,
            '[' => parse_class(piece, at, &mut chars)?,
            c if is_name_character(c) => Token::Literal(c.to_ascii_lowercase()),
            c => return Err(unexpected(piece, at, c)),
        };
        tokens.push(token);
    }
    if tokens.iter().filter(|token| **token != Token::Run).count() > 63 {
        return Err(SyntaxError::new(piece, 63, "a label has at most 63 characters"));
    }
    Ok(Label::Glob(tokens))
}

/// What stands between '[' (at `start`) and ']'.
fn parse_class(
    piece: &str,
    start: usize,
    chars: &mut impl Iterator<Item = (usize, char)>,
) -> Result<Token, SyntaxError> {
    let mut negated = false;
    let mut ranges: Vec<(char, char)> = Vec::new();
    // A range whose end is still to come.
    let mut open = false;
    for (at, c) in chars {
        match c {
            '!' | '^' if at == start + 1 => negated = true,
            ']' if ranges.is_empty() => {
                return Err(SyntaxError::new(piece, at, "expected a character between '[' and ']'"));
            }
            ']' => {
                // '-' at the end is itself.
                if open {
                    ranges.push(('-', '-'));
                }
                ranges.sort_unstable();
                ranges.dedup();
                return Ok(Token::Class { negated, ranges: hyphen_last(ranges) });
            }
            '-' if !open && ranges.last().is_some_and(|(first, last)| first == last && *first != '-') => {
                open = true
            }
            c if is_name_character(c) => {
                let c = c.to_ascii_lowercase();
                match ranges.last_mut() {
                    Some(range) if open => {
                        if c < range.0 || c == '-' {
                            return Err(SyntaxError::new(
                                piece,
                                at,
                                format!("the range ends before it starts: {}-{c}", range.0),
                            ));
                        }
                        range.1 = c;
                        open = false;
                    }
                    _ => ranges.push((c, c)),
                }
            }
            c => {
                return Err(SyntaxError::new(
                    piece,
                    at,
                    format!(
                        "{} cannot stand between '[' and ']'; expected a letter, a digit or '-'",
                        quoted(c)
                    ),
                ));
            }
        }
    }
    Err(SyntaxError::new(piece, start, "'[' is not closed; expected ']'"))
}

/// '-' is printed where it cannot be read as a range: at the end.
fn hyphen_last(ranges: Vec<(char, char)>) -> Vec<(char, char)> {
    let (hyphen, mut rest): (Vec<_>, Vec<_>) = ranges.into_iter().partition(|range| *range == ('-', '-'));
    rest.extend(hyphen);
    rest
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deep {
            f.write_str("**.")?;
        }
        for (index, label) in self.labels.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            match label {
                Label::Literal(literal) => f.write_str(literal)?,
                Label::Any => f.write_str("*")?,
                Label::Glob(tokens) => glob::write(tokens, f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        NamePattern::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_fits() {
        for (text, yes, no) in [
            (
                "example.com",
                vec!["example.com", "EXAMPLE.com."],
                vec!["a.example.com", "example.org", "xexample.com"],
            ),
            (
                "*.example.com",
                vec!["a.example.com"],
                vec!["example.com", "a.b.example.com", "a.example.com.evil.org"],
            ),
            (
                "**.example.com",
                vec!["a.example.com", "a.b.c.example.com"],
                vec!["example.com", "aexample.com"],
            ),
            ("api?.x.org", vec!["api1.x.org", "apis.x.org"], vec!["api.x.org", "api12.x.org"]),
            ("api[12].x.org", vec!["api1.x.org", "api2.x.org"], vec!["api3.x.org", "api12.x.org"]),
            ("api[!12].x.org", vec!["api3.x.org"], vec!["api1.x.org"]),
            ("n[0-9a-c-].x.org", vec!["n7.x.org", "nb.x.org"], vec!["nd.x.org"]),
            ("cdn*.x.org", vec!["cdn.x.org", "cdn01.x.org"], vec!["cdn.a.x.org", "acdn.x.org"]),
            ("**.*.x.org", vec!["a.b.x.org", "a.b.c.x.org"], vec!["a.x.org"]),
            ("a.*.x.org", vec!["a.b.x.org"], vec!["a.x.org", "b.a.x.org"]),
            ("*.bücher.example", vec!["a.xn--bcher-kva.example"], vec!["a.bucher.example"]),
            ("*.XN--BCHER-KVA.example", vec!["a.bücher.example"], vec![]),
        ] {
            let pattern = pattern(text);
            for name in yes {
                assert!(pattern.matches(&Name::parse(name).unwrap()), "{text} {name}");
            }
            for name in no {
                assert!(!pattern.matches(&Name::parse(name).unwrap()), "{text} {name}");
            }
            assert_eq!(super::NamePattern::parse(&pattern.to_string()), Ok(pattern), "{text}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_at_its_column() {
        for (text, column) in [
            ("*", 1),
            ("a.**", 3),
            ("a.**.example", 3),
            ("a**.example", 3),
            ("***.example", 2),
            ("*..example", 3),
            ("*.exa mple", 6),
            ("api[12.example", 4),
            ("api[].example", 5),
            ("api[2-1].example", 7),
            ("api[a,b].example", 6),
            ("api].example", 4),
            ("192.168.1.*", 11),
            ("10.?.0.[12]", 4),
            ("*.1", 1),
            ("*.example.0x1", 11),
            ("*.-a.example", 3),
            ("bü*.example", 2),
            ("*.a／b.example", 4),
        ] {
            let error = NamePattern::parse(text).expect_err(text);
            assert_eq!(error.column(), column, "{text:?}: {error}");
        }
    }

    #[test]
    fn the_suffix_is_what_every_fitting_name_ends_with() {
        for (text, suffix) in [
            ("a.example.com", "a.example.com"),
            ("*.example.com", "example.com"),
            ("**.com", "com"),
            ("google.*", ""),
        ] {
            assert_eq!(pattern(text).suffix(), suffix);
        }
    }
}
