//! Debian version numbers and their order (deb-version(7)).

use std::cmp::Ordering;
use std::fmt;

/// A version; compares as dpkg compares.
#[derive(Debug, Clone, Eq)]
pub struct Version {
    text: String,
}

impl Version {
    /// Takes any text; what is no proper version still has a place in the order.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.trim().to_owned() }
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Epoch, upstream version, revision.
    fn parts(&self) -> (u64, &str, &str) {
        let (epoch, rest) = match self.text.split_once(':') {
            Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
            None => (0, self.text.as_str()),
        };
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch, upstream, revision)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.parts(), other.parts());
        a.0.cmp(&b.0).then_with(|| compare(a.1, b.1)).then_with(|| compare(a.2, b.2))
    }
}

/// `~` sorts before the end, the end before letters, letters before the rest.
fn rank(byte: Option<&u8>) -> u32 {
    match byte {
        Some(b'~') => 0,
        None => 1,
        Some(byte) if byte.is_ascii_digit() => 1,
        Some(byte) if byte.is_ascii_alphabetic() => u32::from(*byte) + 2,
        Some(byte) => u32::from(*byte) + 512,
    }
}

/// Alternates between runs of non-digits and numbers.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        loop {
            let letter = |text: &[u8]| text.first().is_some_and(|byte| !byte.is_ascii_digit());
            if !letter(a) && !letter(b) {
                break;
            }
            match rank(a.first()).cmp(&rank(b.first())) {
                Ordering::Equal => {}
                other => return other,
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let (number_a, rest_a) = number(a);
        let (number_b, rest_b) = number(b);
        // Without leading zeros the longer number is the larger one.
        match number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b)) {
            Ordering::Equal => {}
            other => return other,
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

/// The leading digits without zeros in front, and what follows.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    (digits.get(zeros..).unwrap_or_default(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_as_dpkg_does() {
        // Each is greater than the one before; checked with dpkg --compare-versions.
        let rising = [
            "0~~",
            "0~~a",
            "0~",
            "0",
            "0+b1",
            "1.0~rc1-1",
            "1.0-1~deb13u1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1.1",
            "1.0a-1",
            "1.0+dfsg-1",
            "1.2-1",
            "1.10-1",
            "1.10.0-1",
            "10-1",
            "1:0.5-1",
            "1:0.5-2",
            "2:0",
        ];
        for pair in rising.windows(2) {
            let [low, high] = pair else { panic!() };
            assert!(Version::new(low) < Version::new(high), "{low} < {high}");
            assert!(Version::new(high) > Version::new(low), "{high} > {low}");
        }
    }

    #[test]
    fn knows_what_is_the_same() {
        for (a, b) in [("0:1.0", "1.0"), ("1.00", "1.0"), ("1.0-0", "1.0"), ("1.0-00", "1.0-0")] {
            assert_eq!(Version::new(a), Version::new(b));
        }
    }
}
