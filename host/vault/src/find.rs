//! Finds any of many known texts in bytes that come in pieces, wherever they are cut.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// Known texts, each with a number.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    automaton: Option<AhoCorasick>,
    /// The numbers, by pattern.
    numbers: Vec<usize>,
    longest: usize,
}

impl Finder {
    /// From texts with their numbers. Empty texts are left out, as they are everywhere.
    pub(crate) fn new<'a>(texts: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let (patterns, numbers): (Vec<&str>, Vec<usize>) =
            texts.into_iter().filter(|(text, _)| !text.is_empty()).unzip();
        let longest = patterns.iter().map(|pattern| pattern.len()).max().unwrap_or(0);
        let built = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            // In a host's name the case is lost.
            .ascii_case_insensitive(false)
            .build(&patterns);
        // It fails at 2^31 states only; the set of secrets is limited far below.
        Self { automaton: if patterns.is_empty() { None } else { built.ok() }, numbers, longest }
    }

    /// The numbers of the texts in `bytes`, overlapping ones too, in the order of their ends.
    pub(crate) fn all<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let found = self.automaton.iter().flat_map(move |automaton| automaton.find_overlapping_iter(bytes));
        found.filter_map(|hit| self.numbers.get(hit.pattern().as_usize()).copied())
    }

    /// Bytes of the longest text.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }
}

/// The end of what has passed: as much as a text may have begun in.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    /// Takes the next piece; `look` sees every stretch of bytes in which a text may lie.
    pub(crate) fn feed(&mut self, longest: usize, piece: &[u8], mut look: impl FnMut(&[u8])) {
        let keep = longest.saturating_sub(1);
        if !self.0.is_empty() {
            let before = self.0.len();
            self.0.extend_from_slice(piece.get(..keep).unwrap_or(piece));
            look(&self.0);
            self.0.truncate(before);
        }
        look(piece);
        match piece.len().checked_sub(keep) {
            Some(start) => {
                self.0.clear();
                self.0.extend_from_slice(piece.get(start..).unwrap_or_default());
            }
            None => {
                self.0.extend_from_slice(piece);
                let surplus = self.0.len().saturating_sub(keep);
                self.0.drain(..surplus);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlapping_texts_are_all_found() {
        let finder = Finder::new([("abcd", 1), ("bc", 2), ("", 3)]);
        let mut found: Vec<usize> = finder.all(b"xabcdx").collect();
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
        assert_eq!(Finder::default().all(b"abc").count(), 0);
    }

    proptest! {
        #[test]
        fn a_text_is_found_wherever_it_is_cut(
            before in proptest::collection::vec(any::<u8>(), 0..40),
            after in proptest::collection::vec(any::<u8>(), 0..40),
            cuts in proptest::collection::vec(1usize..30, 0..20),
        ) {
            let text = "ghp_0123456789";
            let finder = Finder::new([(text, 7), ("other-longer-placeholder", 8)]);
            let bytes = [before.as_slice(), text.as_bytes(), after.as_slice()].concat();
            let (mut tail, mut rest, mut found) = (Tail::default(), bytes.as_slice(), false);
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                tail.feed(finder.longest(), piece, |bytes| found |= finder.all(bytes).any(|number| number == 7));
                rest = behind;
            }
            tail.feed(finder.longest(), rest, |bytes| found |= finder.all(bytes).any(|number| number == 7));
            prop_assert!(found);
        }

        #[test]
        fn what_is_not_there_is_not_found(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..20)) {
            let text = b"ghp_0123456789";
            let finder = Finder::new([("ghp_0123456789", 7)]);
            let mut tail = Tail::default();
            let mut found = false;
            for piece in &pieces {
                tail.feed(finder.longest(), piece, |bytes| found |= finder.all(bytes).next().is_some());
            }
            let whole = pieces.concat();
            prop_assert_eq!(found, whole.windows(text.len()).any(|window| window == text));
        }
    }
}
