//! Placeholders: what stands for a secret inside the guest. They are worthless, look as the tool expects, and are the same for a sandbox and a
//! secret at all times, so that a secret that is set again goes on working in sessions that run.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// The key that placeholders are derived from; one for each user, in the vault's index. It is no secret of weight: who has it can tell
/// placeholders, which are worth nothing.
pub type ShapeKey = [u8; 32];

/// The shortest placeholder, in characters: a shorter one may stand in a text by chance.
pub const SHORTEST: usize = 12;
/// The longest placeholder, in characters.
pub const LONGEST: usize = 512;
/// Random characters that a placeholder has at least.
const LEAST_RANDOM: usize = 12;

const DIGITS: &[u8] = b"0123456789";
const HEX: &[u8] = b"0123456789abcdef";
const BASE32: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const ALPHA: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ALNUM: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE64URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The form of a placeholder: text with random parts, as `ghp_{alnum:36}`. The classes are digit, hex, base32, alpha, alnum, base64 and
/// base64url; `{rand}` is `{alnum:32}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shape {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Fixed(String),
    Random(&'static [u8], usize),
}

/// What is wrong with a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no form of a placeholder: {why}", text.escape_debug())]
pub struct ShapeError {
    /// The shape as it was given.
    pub text: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

impl Shape {
    /// The placeholder for `label`, which names the sandbox, the secret and the part of it.
    pub fn derive(&self, key: &ShapeKey, label: &[&str]) -> String {
        let mut stream = Stream::new(key, label);
        let mut text = String::with_capacity(self.len());
        for part in &self.parts {
            match part {
                Part::Fixed(fixed) => text.push_str(fixed),
                Part::Random(class, count) => {
                    text.extend((0..*count).map(|_| char::from(stream.pick(class))));
                }
            }
        }
        text
    }

    fn len(&self) -> usize {
        self.parts.iter().fold(0usize, |sum, part| {
            sum.saturating_add(match part {
                Part::Fixed(text) => text.len(),
                Part::Random(_, count) => *count,
            })
        })
    }

    fn random(&self) -> usize {
        let counts = self.parts.iter().map(|part| if let Part::Random(_, count) = part { *count } else { 0 });
        counts.fold(0, usize::saturating_add)
    }
}

fn class(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "digit" => DIGITS,
        "hex" => HEX,
        "base32" => BASE32,
        "alpha" => ALPHA,
        "alnum" => ALNUM,
        "base64" => BASE64,
        "base64url" => BASE64URL,
        _ => return None,
    })
}

fn part(inside: &str) -> Option<Part> {
    if inside == "rand" {
        return Some(Part::Random(ALNUM, 32));
    }
    let (name, count) = inside.split_once(':')?;
    Some(Part::Random(class(name)?, count.parse().ok().filter(|count| (1..=LONGEST).contains(count))?))
}

impl FromStr for Shape {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let fail = |why| ShapeError { text: text.to_owned(), why };
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(fail("only printable ASCII without spaces can be in it"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (inside, behind) = after.split_once('}').ok_or_else(|| fail("a brace is not closed"))?;
            if !before.is_empty() {
                parts.push(Part::Fixed(before.to_owned()));
            }
            parts.push(
                part(inside).ok_or_else(|| {
                    fail("in braces stands rand, or a class and a number, as in {alnum:32}")
                })?,
            );
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Fixed(rest.to_owned()));
        }
        let shape = Self { text: text.to_owned(), parts };
        if !(SHORTEST..=LONGEST).contains(&shape.len()) {
            return Err(fail("it would have fewer than 12 or more than 512 characters"));
        }
        if shape.random() < LEAST_RANDOM {
            return Err(fail("at least 12 of its characters must be random, as in viv-{rand}"));
        }
        Ok(shape)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Shape {
    type Error = ShapeError;

    fn try_from(text: String) -> Result<Self, ShapeError> {
        text.parse()
    }
}

impl From<Shape> for String {
    fn from(shape: Shape) -> String {
        shape.text
    }
}

/// Bytes that follow from a key and a label: HMAC-SHA256 in counter mode.
struct Stream {
    mac: Hmac<Sha256>,
    block: [u8; 32],
    used: usize,
    count: u64,
}

impl Stream {
    fn new(key: &ShapeKey, label: &[&str]) -> Self {
        let mut mac = keyed(key);
        mac.update(b"vivarium placeholder 1");
        for word in label {
            mac.update(&(word.len() as u64).to_be_bytes());
            mac.update(word.as_bytes());
        }
        Self { mac, block: [0; 32], used: 32, count: 0 }
    }

    fn next(&mut self) -> u8 {
        if self.used >= self.block.len() {
            let mut mac = self.mac.clone();
            mac.update(&self.count.to_be_bytes());
            self.block = mac.finalize().into_bytes().into();
            self.count = self.count.wrapping_add(1);
            self.used = 0;
        }
        let byte = self.block.get(self.used).copied().unwrap_or_default();
        self.used = self.used.saturating_add(1);
        byte
    }

    /// One of the class, each as likely as the others.
    fn pick(&mut self, class: &[u8]) -> u8 {
        let count = class.len().clamp(1, 256);
        let fair = 256usize.checked_div(count).unwrap_or(1).saturating_mul(count);
        loop {
            let byte = usize::from(self.next());
            if byte < fair {
                let index = byte.checked_rem(count).unwrap_or_default();
                return class.get(index).copied().unwrap_or(b'x');
            }
        }
    }
}

/// HMAC-SHA256 with a key of any length.
pub(crate) fn keyed(key: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of every length (RFC 2104, section 2); the library's error is for other algorithms.
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes every key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_placeholder_has_its_shape_and_stays_the_same() {
        let shape: Shape = "ghp_{alnum:36}".parse().unwrap();
        let one = shape.derive(&[7; 32], &["box", "github", "value"]);
        assert_eq!(one.len(), 40);
        assert!(one.starts_with("ghp_") && one.bytes().skip(4).all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(one, shape.derive(&[7; 32], &["box", "github", "value"]));
        for other in [
            shape.derive(&[8; 32], &["box", "github", "value"]),
            shape.derive(&[7; 32], &["box2", "github", "value"]),
            shape.derive(&[7; 32], &["box", "githu", "bvalue"]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_is_no_shape_is_told() {
        for text in [
            "",
            "short",
            "x{rand",
            "x{foo:3}",
            "x{alnum:}",
            "x{alnum:0}",
            "x{alnum:9999}",
            "fixed-and-long-enough",
            "a b{rand}",
            "\u{7}{rand}",
        ] {
            assert!(text.parse::<Shape>().is_err(), "{text:?}");
        }
        assert_eq!("viv-{rand}".parse::<Shape>().unwrap().derive(&[0; 32], &[]).len(), 36);
    }

    proptest! {
        #[test]
        fn every_class_gives_only_its_own(key: [u8; 32], label in "[a-z]{0,20}") {
            for (name, class) in [("digit", DIGITS), ("hex", HEX), ("base32", BASE32), ("alpha", ALPHA), ("alnum", ALNUM), ("base64", BASE64), ("base64url", BASE64URL)] {
                let text = format!("{{{name}:50}}").parse::<Shape>().unwrap().derive(&key, &[&label]);
                prop_assert!(text.bytes().all(|byte| class.contains(&byte)));
                prop_assert_eq!(text.len(), 50);
            }
        }

        #[test]
        fn any_text_is_a_shape_or_an_error(text in ".{0,80}") {
            if let Ok(shape) = text.parse::<Shape>() {
                prop_assert_eq!(shape.derive(&[1; 32], &["x"]).len(), shape.len());
            }
        }
    }
}
