//! HTTP methods and path patterns of a rule.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{SyntaxError, quoted, shown};
use crate::glob::{self, Token};
use crate::path::{CanonicalPath, Reading, forbidden};

/// The methods that a rule can name, in the order of [`Methods`]' bits.
const NAMES: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
/// Longest path pattern, in bytes.
const LONGEST: usize = 1024;

/// Some methods, or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub enum Methods {
    /// `ANY`, including methods that have no name here.
    Any,
    /// Bit *n* for the *n*th of `NAMES`; at least one.
    Some(u16),
}

impl Methods {
    /// Reads `GET,HEAD` or `ANY`, in any case.
    ///
    /// # Errors
    /// With the column of what is no method.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut all = Self::Some(0);
        let mut offset = 0;
        for piece in text.split(',') {
            let blank = piece.chars().take_while(|c| *c == ' ').count();
            let one = Self::one(piece.trim_matches(' '))
                .map_err(|problem| SyntaxError::new(text, offset + blank, problem))?;
            all = all.and(one);
            offset += piece.chars().count() + 1;
        }
        Ok(all)
    }

    fn one(word: &str) -> Result<Self, String> {
        if word.eq_ignore_ascii_case("ANY") {
            return Ok(Self::Any);
        }
        bit(word, true).map(Self::Some).ok_or_else(|| {
            format!(
                "expected {} or ANY, found {}",
                NAMES.join(", "),
                if word.is_empty() { "nothing".to_owned() } else { shown(word) }
            )
        })
    }

    /// These and those.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Some(a), Self::Some(b)) => Self::Some(a | b),
            _ => Self::Any,
        }
    }

    /// The methods as they came in a request; one that has no name here is only in `ANY`.
    #[must_use]
    pub fn of_request(method: &str) -> Self {
        bit(method, false).map_or(Self::Any, Self::Some)
    }

    /// Whether a request's method is one of these. Methods are told apart by case (RFC 9110 §9.1), and some servers do not:
    /// an allow is `exact`, a deny is not.
    pub(crate) fn contains(self, method: &str, exact: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Some(bits) => bit(method, !exact).is_some_and(|bit| bits & bit != 0),
        }
    }

    fn names(self) -> Vec<&'static str> {
        match self {
            Self::Any => vec!["ANY"],
            Self::Some(bits) => NAMES
                .iter()
                .enumerate()
                .filter(|(index, _)| bits & (1 << index) != 0)
                .map(|(_, name)| *name)
                .collect(),
        }
    }
}

fn bit(word: &str, any_case: bool) -> Option<u16> {
    let index =
        NAMES.iter().position(|name| *name == word || (any_case && name.eq_ignore_ascii_case(word)))?;
    Some(1 << index)
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

impl TryFrom<Vec<String>> for Methods {
    type Error = String;
    fn try_from(words: Vec<String>) -> Result<Self, String> {
        if words.is_empty() {
            return Err("expected at least one method".to_owned());
        }
        words.iter().try_fold(Self::Some(0), |all, word| Ok(all.and(Self::one(word)?)))
    }
}

impl From<Methods> for Vec<String> {
    fn from(methods: Methods) -> Self {
        methods.names().into_iter().map(str::to_owned).collect()
    }
}

/// A pattern of paths: `/a/b` one path, `/a/*` one more segment, `/a/**` it and everything beneath, `*.tgz` within a segment.
/// A slash at the end is no part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    /// `**`: any number of segments, none too.
    Deep,
    One(Vec<Token>),
}

impl PathPattern {
    /// `/**`: every path.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![Segment::Deep])
    }

    /// Reads a pattern.
    ///
    /// # Errors
    /// With the column of what has no place in a canonical path.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let Some(body) = text.strip_prefix('/') else {
            return Err(SyntaxError::new(text, 0, "a path starts with '/'"));
        };
        if text.len() > LONGEST {
            return Err(SyntaxError::new(
                text,
                LONGEST,
                format!("a path pattern has at most {LONGEST} bytes"),
            ));
        }
        if let Some((at, c)) =
            text.chars().enumerate().find(|(_, c)| forbidden(*c) || matches!(c, '%' | '?' | '#' | ';'))
        {
            let why = match c {
                '%' => "expected the character itself instead of its percent-encoding".to_owned(),
                '?' => "a rule sees no query; expected '*' for any characters".to_owned(),
                c => format!("{} has no place in a canonical path", quoted(c)),
            };
            return Err(SyntaxError::new(text, at, why));
        }
        let mut segments = Vec::new();
        let mut offset = 1;
        let body = body.strip_suffix('/').unwrap_or(body);
        for piece in body.split('/').filter(|_| !body.is_empty()) {
            segments.push(parse_segment(piece).map_err(|problem| SyntaxError::new(text, offset, problem))?);
            offset += piece.chars().count() + 1;
        }
        segments.dedup_by(|a, b| *a == Segment::Deep && *b == Segment::Deep);
        Ok(Self(segments))
    }

    /// The pattern of literal segments, and of all beneath them if `deep`. `None` when a segment cannot be written in a rule.
    pub(crate) fn literal(segments: &[String], deep: bool) -> Option<Self> {
        if segments.iter().any(|segment| segment.is_empty() || segment.contains(['*', '/'])) {
            return None;
        }
        let pieces = segments.iter().map(String::as_str).chain(deep.then_some("**"));
        Self::parse(&format!("/{}", pieces.collect::<Vec<_>>().join("/"))).ok()
    }

    /// Whether every path fits.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0 == [Segment::Deep]
    }

    /// Whether an allow of this pattern holds for a path: every reading fits, exactly.
    pub(crate) fn allows(&self, path: &CanonicalPath) -> bool {
        path.readings().iter().all(|reading| self.fits(reading, |segment| segment.to_owned()))
    }

    /// Whether a deny of this pattern holds for a path: one reading fits, and neither case nor dots and blanks at the end
    /// of a segment matter, as to some servers they do not.
    pub(crate) fn denies(&self, path: &CanonicalPath) -> bool {
        let loose = Self(self.0.iter().map(Segment::loose).collect());
        path.readings().iter().any(|reading| loose.fits(reading, loosened))
    }

    fn fits(&self, reading: &Reading, form: impl Fn(&str) -> String) -> bool {
        match reading {
            Reading::Asterisk => self.is_all(),
            Reading::Segments(segments) => glob::fits(
                &self.0,
                segments,
                |pattern| *pattern == Segment::Deep,
                |pattern, segment| match pattern {
                    Segment::Deep => true,
                    // An empty segment is none that `*` stands for.
                    Segment::One(tokens) => !segment.is_empty() && glob::matches(tokens, &form(segment)),
                },
            ),
        }
    }
}

fn loosened(segment: &str) -> String {
    segment.trim_end_matches(['.', ' ']).to_lowercase()
}

impl Segment {
    fn loose(&self) -> Self {
        let Self::One(tokens) = self else { return Self::Deep };
        let mut tokens: Vec<Token> = tokens
            .iter()
            .flat_map(|token| match token {
                Token::Literal(c) => c.to_lowercase().map(Token::Literal).collect(),
                other => vec![other.clone()],
            })
            .collect();
        while matches!(tokens.last(), Some(Token::Literal('.' | ' '))) {
            tokens.pop();
        }
        Self::One(tokens)
    }
}

fn parse_segment(piece: &str) -> Result<Segment, String> {
    match piece {
        "**" => return Ok(Segment::Deep),
        "" => return Err("expected a segment between two slashes".to_owned()),
        _ if piece.contains("**") => return Err("'**' stands alone between slashes".to_owned()),
        _ if piece.chars().all(|c| c == '.' || c == ' ') => {
            return Err("a canonical path has no '.' and '..' segments".to_owned());
        }
        _ => {}
    }
    Ok(Segment::One(piece.chars().map(|c| if c == '*' { Token::Run } else { Token::Literal(c) }).collect()))
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for segment in &self.0 {
            f.write_str("/")?;
            match segment {
                Segment::Deep => f.write_str("**")?,
                Segment::One(tokens) => glob::write(tokens, f)?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for PathPattern {
    type Error = SyntaxError;
    fn try_from(text: String) -> Result<Self, SyntaxError> {
        Self::parse(&text)
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn path(text: &str) -> CanonicalPath {
        CanonicalPath::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_an_allow_holds_for() {
        for (text, yes, no) in [
            ("/", vec!["/", "/?q"], vec!["/a", "*"]),
            ("/a", vec!["/a", "/a/", "/%61", "/a?b"], vec!["/A", "/a/b", "/", "/a.", "/a%20"]),
            ("/a/*", vec!["/a/b", "/a/b/"], vec!["/a", "/a/b/c", "/a//"]),
            (
                "/a/**",
                vec!["/a", "/a/", "/a/b", "/a/b/c", "/a//b"],
                vec!["/ab", "/A/b", "//a/b", "/a%2Fb", "/x/a"],
            ),
            ("/**", vec!["/", "*", "/a/b", "/a%2Fb", "//x", "/a;b/c"], vec![]),
            (
                "/**/git-upload-pack",
                vec!["/git-upload-pack", "/o/r.git/git-upload-pack"],
                vec!["/o/git-receive-pack"],
            ),
            (
                "/*/*.git/info/refs",
                vec!["/o/r.git/info/refs"],
                vec!["/o/r/info/refs", "/o/p/r.git/info/refs"],
            ),
            ("/a/**/b/**/c", vec!["/a/b/c", "/a/x/b/y/z/c"], vec!["/a/c", "/a/b/c/d"]),
            ("/my file", vec!["/my%20file"], vec!["/my+file"]),
            ("/a;b", vec![], vec![]),
        ] {
            if text.contains(';') {
                assert!(PathPattern::parse(text).is_err());
                continue;
            }
            let pattern = pattern(text);
            for yes in yes {
                assert!(pattern.allows(&path(yes)), "{text} {yes}");
                assert!(pattern.denies(&path(yes)), "{text} {yes}");
            }
            for no in no {
                assert!(!pattern.allows(&path(no)), "{text} {no}");
            }
            assert_eq!(PathPattern::parse(&pattern.to_string()), Ok(pattern));
        }
    }

    #[test]
    fn a_deny_is_not_passed_by_another_spelling() {
        let admin = pattern("/admin/**");
        for spelling in [
            "/admin",
            "/admin/x",
            "/ADMIN/x",
            "/%61dmin/x",
            "//admin/x",
            "/admin//x",
            "/admin;a=b/x",
            "/admin%3b/x",
            "/admin%2Fx",
            "/%2561dmin/x",
            "/admin%252Fx",
            "/admin./x",
            "/admin%20/x",
            "/admin?x",
            "/Admin./",
        ] {
            assert!(admin.denies(&path(spelling)), "{spelling}");
        }
        for other in ["/administrator", "/x/admin", "/", "/a/dmin"] {
            assert!(!admin.denies(&path(other)), "{other}");
        }
        assert!(pattern("/a/b").denies(&path("/a//b")) && pattern("/a/b").denies(&path("/a%2Fb")));
    }

    #[test]
    fn what_is_no_pattern_is_refused_at_its_column() {
        for (text, column) in [
            ("", 1),
            ("a", 1),
            ("/a?b", 3),
            ("/a%20b", 3),
            ("/a#b", 3),
            ("/a;b", 3),
            ("/a\\b", 3),
            ("/a\nb", 3),
            ("/a//b", 4),
            ("/a/../b", 4),
            ("/./b", 2),
            ("/a/b**", 4),
            ("/a/***", 4),
        ] {
            let error = PathPattern::parse(text).expect_err(text);
            assert_eq!(error.column(), column, "{text:?}: {error}");
        }
    }

    #[test]
    fn methods_are_read_and_told_apart() {
        assert_eq!(Methods::parse("get, HEAD").unwrap().to_string(), "GET,HEAD");
        assert_eq!(Methods::parse("HEAD,GET,GET").unwrap().to_string(), "GET,HEAD");
        assert_eq!(Methods::parse("GET,any"), Ok(Methods::Any));
        for (text, column) in [("", 1), ("GET,", 5), ("GET,FETCH", 5), ("GET HEAD", 1), ("PROPFIND", 1)] {
            assert_eq!(Methods::parse(text).expect_err(text).column(), column, "{text}");
        }
        let post = Methods::parse("POST").unwrap();
        assert!(post.contains("POST", true) && !post.contains("post", true) && post.contains("post", false));
        assert!(!post.contains("PROPFIND", false) && Methods::Any.contains("PROPFIND", true));
    }
}
