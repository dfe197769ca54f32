//! The path of an HTTP request, under every reading that a server may give to it.
//!
//! A rule must not be passed by another spelling of the path that it is about. Servers differ in what they make of some
//! spellings, so a path is not brought into one form but into all that it may have: a deny holds when one of them fits, an
//! allow when all of them do.
//!
//! | in the path | what is done |
//! |---|---|
//! | `%41` | decoded |
//! | `//` | read with and without the empty segments |
//! | `%2F` | read as data and as a separator |
//! | `;x` | read as part of the segment and as parameters that are no part of it |
//! | `%2541` | read decoded once and decoded twice |
//! | two of the last three together | refused |
//! | `.` and `..` segments in any spelling, segments of dots and blanks alone | refused |
//! | `\`, `%5C`, control characters, `#`, bad percent-encoding, bad UTF-8, full-width `. / \ %` | refused |
//! | a slash at the end | no part of it |
//! | the query | cut off |

use std::fmt;

use crate::error::quoted;

/// Longest path that is judged, in bytes without its query.
const LONGEST: usize = 8192;

/// A path that can be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath {
    /// The main reading first; never empty.
    readings: Vec<Reading>,
}

/// One reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading {
    /// `*`, as in `OPTIONS *`.
    Asterisk,
    /// The decoded segments; none for `/`.
    Segments(Vec<String>),
}

/// A path that no rule can judge, as servers read it in ways that cannot be foreseen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not `/…`.
    #[error("the path does not start with '/'")]
    Start,
    /// Too long.
    #[error("the path is longer than {LONGEST} bytes")]
    Long,
    /// A character that servers read differently, or that has no place in a path.
    #[error("the path has {}, which has no place there", quoted(*.0))]
    Character(char),
    /// `%` without two hexadecimal digits.
    #[error("the path has '%' without two hexadecimal digits after it")]
    Percent,
    /// What the percent-encoding hides is no UTF-8.
    #[error("the decoded path is not UTF-8")]
    Utf8,
    /// `.`, `..` and what is taken for them.
    #[error("the path has a segment of dots, which servers resolve differently")]
    Dots,
    /// Encodings upon encodings.
    #[error("the path mixes ';', '%2F' or double encoding, which servers read differently")]
    Mixed,
}

/// How a path is decoded.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// An encoded slash parts segments.
    slash: bool,
    /// What follows ';' is no part of a segment.
    parameters: bool,
    /// Decode twice.
    twice: bool,
    /// Empty segments are none.
    merged: bool,
}

impl CanonicalPath {
    /// Reads a request's path as it is in the request line or `:path`, with its query or without; the empty path is `/`.
    ///
    /// # Errors
    /// When servers read it in ways that cannot be foreseen. Such a request is refused with this error's sentence.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        let raw = path.split('?').next().unwrap_or_default();
        if raw.len() > LONGEST {
            return Err(PathError::Long);
        }
        if raw.contains('#') {
            return Err(PathError::Character('#'));
        }
        if raw == "*" {
            return Ok(Self { readings: vec![Reading::Asterisk] });
        }
        let body = match raw.strip_prefix('/') {
            Some(body) => body,
            None if raw.is_empty() => "",
            None => return Err(PathError::Start),
        };
        let mut readings = Vec::new();
        for manner in manners(raw)? {
            let segments = Reading::Segments(read(body, manner)?);
            if !readings.contains(&segments) {
                readings.push(segments);
            }
        }
        Ok(Self { readings })
    }

    pub(crate) fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// Whether the path has one reading alone.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.readings.len() == 1
    }

    /// The segments under the main reading; `None` for `*`.
    pub(crate) fn main(&self) -> Option<&[String]> {
        match self.readings.first() {
            Some(Reading::Segments(segments)) => Some(segments),
            _ => None,
        }
    }
}

/// The manners in which this path can be read, the main one first.
fn manners(raw: &str) -> Result<Vec<Manner>, PathError> {
    let once = decode(raw)?;
    // Decoded text has a slash or a semicolon more than the raw one when one was encoded.
    let slash = once.matches('/').count() > raw.matches('/').count();
    let parameters = once.contains(';');
    let again = has_encoding(&once);
    if u8::from(slash) + u8::from(parameters) + u8::from(again) > 1 {
        return Err(PathError::Mixed);
    }
    let mut manners = vec![Manner::default()];
    if slash {
        manners.push(Manner { slash: true, ..Manner::default() });
    }
    if parameters {
        manners.push(Manner { parameters: true, ..Manner::default() });
    }
    if again {
        let twice = decode(&once)?;
        if has_encoding(&twice) || (twice.contains(';') && !once.contains(';')) {
            return Err(PathError::Mixed);
        }
        manners.push(Manner { twice: true, ..Manner::default() });
        manners.push(Manner { twice: true, slash: true, ..Manner::default() });
    }
    let merged: Vec<Manner> = manners.iter().map(|manner| Manner { merged: true, ..*manner }).collect();
    manners.extend(merged);
    Ok(manners)
}

/// The segments of `body`, which is the path behind its first slash.
fn read(body: &str, manner: Manner) -> Result<Vec<String>, PathError> {
    let mut segments: Vec<String> = Vec::new();
    for piece in body.split('/') {
        let mut text = decode(piece)?;
        if manner.twice {
            text = decode(&text)?;
        }
        if manner.slash {
            segments.extend(text.split('/').map(str::to_owned));
        } else {
            segments.push(text);
        }
    }
    if manner.parameters {
        for segment in &mut segments {
            if let Some(at) = segment.find(';') {
                segment.truncate(at);
            }
        }
    }
    if manner.merged {
        segments.retain(|segment| !segment.is_empty());
    } else if segments.last().is_some_and(String::is_empty) {
        segments.pop();
    }
    for segment in &segments {
        if !segment.is_empty() && segment.chars().all(|c| c == '.' || c == ' ') {
            return Err(PathError::Dots);
        }
        // Hidden dot segments of a reading that is not taken here: "..;x", "a%2F..".
        if segment.split(['/', ';']).any(|part| part == "." || part == "..") {
            return Err(PathError::Dots);
        }
    }
    Ok(segments)
}

/// Percent-decodes once, and refuses what has no place in a path.
fn decode(text: &str) -> Result<String, PathError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (rest.next().and_then(nibble), rest.next().and_then(nibble)) else {
            return Err(PathError::Percent);
        };
        bytes.push((high << 4) | low);
    }
    let decoded = String::from_utf8(bytes).map_err(|_| PathError::Utf8)?;
    match decoded.chars().find(|c| forbidden(*c)) {
        Some(c) => Err(PathError::Character(c)),
        None => Ok(decoded),
    }
}

fn nibble(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Characters that end a path, that some servers take for a slash, or that some normalise to a dot, slash or percent sign.
pub(crate) fn forbidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\\' | '\u{2024}' | '\u{2025}' | '\u{fe52}' | '\u{fe68}' | '\u{fe6a}')
        || matches!(c, '\u{ff05}' | '\u{ff0e}' | '\u{ff0f}' | '\u{ff1b}' | '\u{ff3c}')
}

/// Whether a text has what could be decoded.
fn has_encoding(text: &str) -> bool {
    text.match_indices('%').any(|(at, _)| {
        text.as_bytes().get(at + 1..at + 3).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
    })
}

impl fmt::Display for CanonicalPath {
    /// The main reading, decoded; for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.main() {
            None => f.write_str("*"),
            Some([]) => f.write_str("/"),
            Some(segments) => segments.iter().try_for_each(|segment| write!(f, "/{segment}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        let path = CanonicalPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        path.readings
            .iter()
            .map(|reading| match reading {
                Reading::Asterisk => "*".to_owned(),
                // A separator that is no slash, so that a slash in a segment is seen.
                Reading::Segments(segments) => segments.join("|"),
            })
            .collect()
    }

    #[test]
    fn each_spelling_has_its_readings() {
        for (path, expected) in [
            ("/", vec![""]),
            ("", vec![""]),
            ("*", vec!["*"]),
            ("/a/b", vec!["a|b"]),
            ("/a/b/", vec!["a|b"]),
            ("/a?b=/../c", vec!["a"]),
            ("/%61/b%20c", vec!["a|b c"]),
            ("/a//b", vec!["a||b", "a|b"]),
            ("//a", vec!["|a", "a"]),
            ("/a//", vec!["a|", "a"]),
            ("/@scope%2Fname", vec!["@scope/name", "@scope|name"]),
            ("/@scope%2fname", vec!["@scope/name", "@scope|name"]),
            ("/a;v=1/b", vec!["a;v=1|b", "a|b"]),
            ("/a%3Bv/b", vec!["a;v|b", "a|b"]),
            ("/a%2541", vec!["a%41", "aA"]),
            ("/a%252Fb", vec!["a%2Fb", "a/b", "a|b"]),
            ("/100%25", vec!["100%"]),
            ("/compare/v1...v2", vec!["compare|v1...v2"]),
            ("/b%C3%BCcher", vec!["bücher"]),
        ] {
            assert_eq!(readings(path), expected, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        for (path, expected) in [
            ("a", PathError::Start),
            ("http://example.com/a", PathError::Start),
            ("/a/../b", PathError::Dots),
            ("/a/..", PathError::Dots),
            ("/./a", PathError::Dots),
            ("/%2e%2e/a", PathError::Dots),
            ("/.%2E/a", PathError::Dots),
            ("/a%2F..%2Fb", PathError::Dots),
            ("/a%2f.%2fb", PathError::Dots),
            ("/%252e%252e/a", PathError::Dots),
            ("/a/..;/b", PathError::Dots),
            ("/a/..;x=y/b", PathError::Dots),
            ("/.../a", PathError::Dots),
            ("/.. /a", PathError::Dots),
            ("/..%20/a", PathError::Dots),
            ("/a#b", PathError::Character('#')),
            ("/a\\b", PathError::Character('\\')),
            ("/a%5cb", PathError::Character('\\')),
            ("/a%255cb", PathError::Character('\\')),
            ("/a%00", PathError::Character('\0')),
            ("/a%0d%0ab", PathError::Character('\r')),
            ("/a\u{ff0f}b", PathError::Character('\u{ff0f}')),
            ("/%EF%BC%8E%EF%BC%8E/", PathError::Character('\u{ff0e}')),
            ("/%zz", PathError::Percent),
            ("/%4", PathError::Percent),
            ("/%u002f", PathError::Percent),
            ("/%c0%ae%c0%ae/", PathError::Utf8),
            ("/%ff", PathError::Utf8),
            ("/a;b/c%2Fd", PathError::Mixed),
            ("/a%252541", PathError::Mixed),
            ("/a%253Bb", PathError::Mixed),
        ] {
            assert_eq!(CanonicalPath::parse(path), Err(expected), "{path}");
        }
        assert_eq!(CanonicalPath::parse(&format!("/{}", "a".repeat(9000))), Err(PathError::Long));
        assert!(CanonicalPath::parse(&format!("/?{}", "a".repeat(9000))).is_ok());
    }
}
