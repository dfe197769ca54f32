//! Wildcards inside one label of a name or one segment of a path: `*`, `?`, `[12]`, `[a-c]`, `[!x]`.

use std::fmt;

/// One element of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Token {
    /// This character.
    Literal(char),
    /// `?`: any one character.
    One,
    /// `*`: any run of characters, the empty one too.
    Run,
    /// `[…]`: one of these ranges, or with `!` none of them.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn fits(&self, c: char) -> bool {
        match self {
            Token::Literal(literal) => *literal == c,
            Token::One | Token::Run => true,
            Token::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
            }
        }
    }
}

/// Whether the whole text fits the tokens.
pub(crate) fn matches(tokens: &[Token], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    fits(tokens, &text, |token| *token == Token::Run, |token, c| token.fits(*c))
}

/// Whether a sequence fits a pattern in which some elements (`run`) stand for any number of items, and each other one for
/// one item that it `suits`. Only the last run has to be tried again, so this is at most the product of the lengths.
pub(crate) fn fits<P, T>(
    pattern: &[P],
    items: &[T],
    run: impl Fn(&P) -> bool,
    suits: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut item) = (0, 0);
    // Where the last run stands, and the first item that it has not taken yet.
    let mut again: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(at), items.get(item)) {
            (Some(element), _) if run(element) => {
                again = Some((at, item));
                at += 1;
            }
            (Some(element), Some(thing)) if suits(element, thing) => {
                at += 1;
                item += 1;
            }
            (None, None) => return true,
            _ => match again {
                Some((star, taken)) if taken < items.len() => {
                    again = Some((star, taken + 1));
                    at = star + 1;
                    item = taken + 1;
                }
                _ => return false,
            },
        }
    }
}

/// Writes tokens as they are read.
pub(crate) fn write(tokens: &[Token], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for token in tokens {
        match token {
            Token::Literal(c) => write!(f, "{c}")?,
            Token::One => write!(f, "?")?,
            Token::Run => write!(f, "*")?,
            Token::Class { negated, ranges } => {
                write!(f, "[{}", if *negated { "!" } else { "" })?;
                for (first, last) in ranges {
                    if first == last { write!(f, "{first}")? } else { write!(f, "{first}-{last}")? }
                }
                write!(f, "]")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        text.chars()
            .map(|c| match c {
                '*' => Token::Run,
                '?' => Token::One,
                c => Token::Literal(c),
            })
            .collect()
    }

    #[test]
    fn runs_are_tried_again() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "a", true),
            ("*b", "aab", true),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "axxbyybz", false),
            ("*aab", "aaaab", true),
            ("?", "", false),
            ("?*", "x", true),
            ("a?c", "abc", true),
        ] {
            assert_eq!(matches(&tokens(pattern), text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_made_to_take_long_does_not() {
        let pattern = tokens(&format!("{}b", "a*".repeat(30)));
        assert!(!matches(&pattern, &"a".repeat(2000)));
    }
}
