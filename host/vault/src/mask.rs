//! Values that a server sends back become placeholders again, so that they do not reach the guest.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// A shorter value is not masked: it may stand in a text by chance.
pub const SHORTEST_MASKED: usize = 8;

/// Whether a value is masked where a server says it back: much else looks like a shorter one.
pub fn is_masked(value: &Secret) -> bool {
    value.len() >= SHORTEST_MASKED
}

/// What is kept as it is in a query (RFC 3986, section 2.3).
pub(crate) const UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What is kept as it is where servers percent-encode: RFC 3986's unreserved, the same with the slash (Python's `quote`), JavaScript's
/// `encodeURIComponent`, RFC 1738's as PHP has it, and forms (WHATWG URL, `application/x-www-form-urlencoded`).
const KEPT: [&AsciiSet; 5] = [
    UNRESERVED,
    &UNRESERVED.remove(b'/'),
    &UNRESERVED.remove(b'!').remove(b'\'').remove(b'(').remove(b')').remove(b'*'),
    &UNRESERVED.add(b'~'),
    &UNRESERVED.add(b'~').remove(b'*'),
];

/// One form of a value, and what to show instead.
pub(crate) struct Form {
    needle: Secret,
    shown: String,
    /// The longest of the others that it begins with, by its number.
    within: Option<usize>,
}

/// The forms of all values: as they are, percent-encoded as is usual, and base64 at each of its three offsets; in the order of their bytes, so that
/// those that begin alike stand together. A form that contains another is taken as a whole.
///
/// They are searched for as Wu and Manber do (1994), and not by an automaton: those that there are copy the values into tables that nobody overwrites.
#[derive(Default)]
pub(crate) struct Forms {
    forms: Vec<Form>,
    longest: usize,
    /// By each two bytes: how far behind a place the first form can begin when they stand at the end of that place's first [`SHORTEST_MASKED`], and
    /// [`BEGINS`]. It tells something of the values, and is overwritten like them.
    pairs: Zeroizing<Vec<u8>>,
}

/// A form begins with these two bytes.
const BEGINS: u8 = 0x80;
/// No form has these two bytes among its first.
const FURTHEST: u8 = SHORTEST_MASKED as u8 - 1;

/// The number of two bytes.
fn pair(first: u8, second: u8) -> usize {
    usize::from(u16::from_be_bytes([first, second]))
}

/// The number of the longest of these that `bytes` begin with.
fn longest_at(forms: &[Form], bytes: &[u8]) -> Option<usize> {
    // The last that does not stand behind `bytes` itself begins with each that they begin with.
    let mut number = forms.partition_point(|form| form.needle.expose() <= bytes).checked_sub(1);
    while let Some(form) = number.and_then(|number| forms.get(number)) {
        if bytes.starts_with(form.needle.expose()) {
            return number;
        }
        number = form.within;
    }
    None
}

impl Forms {
    /// From values and their placeholders.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = (&'a Secret, &'a str)>) -> Self {
        let mut forms = Vec::new();
        for (value, shown) in values.into_iter().filter(|(value, _)| is_masked(value)) {
            let mut add = |needle: Secret| {
                if needle.len() >= SHORTEST_MASKED {
                    forms.push(Form { needle, shown: shown.to_owned(), within: None });
                }
            };
            add(value.duplicate());
            percent_encoded(value.expose()).into_iter().for_each(&mut add);
            for offset in 0..3 {
                add(base64_inside(value.expose(), offset));
            }
        }
        // Of equal ones the first stays: the order of equal ones is kept.
        forms.sort_by(|one, other| one.needle.expose().cmp(other.needle.expose()));
        forms.dedup_by(|one, before| one.needle.expose() == before.needle.expose());
        for number in 0..forms.len() {
            let (before, rest) = forms.split_at_mut(number);
            if let Some(form) = rest.first_mut() {
                form.within = longest_at(before, form.needle.expose());
            }
        }
        Self::searchable(forms)
    }

    /// With what speeds up looking for them.
    fn searchable(forms: Vec<Form>) -> Self {
        let longest = forms.iter().map(|form| form.needle.len()).max().unwrap_or(0);
        let mut pairs = Zeroizing::new(vec![FURTHEST; if forms.is_empty() { 0 } else { 1 << 16 }]);
        for form in &forms {
            let begin = form.needle.expose().get(..SHORTEST_MASKED).unwrap_or_default();
            for (two, step) in begin.windows(2).zip((0..FURTHEST).rev()) {
                let [first, second] = two else { continue };
                if let Some(known) = pairs.get_mut(pair(*first, *second)) {
                    let is_first = if step == FURTHEST - 1 { BEGINS } else { 0 };
                    *known = (*known & !BEGINS).min(step) | (*known & BEGINS) | is_first;
                }
            }
        }
        Self { forms, longest, pairs }
    }

    /// The first place from `at` on where a form may begin, whole or cut off by the end of `bytes`.
    fn candidate(&self, bytes: &[u8], mut at: usize) -> Option<usize> {
        let known = |first, second| self.pairs.get(pair(first, second)).copied().unwrap_or(FURTHEST);
        while let Some([first, second, .., last_but_one, last]) =
            bytes.get(at..at.saturating_add(SHORTEST_MASKED))
        {
            let step = known(*last_but_one, *last) & !BEGINS;
            if step == 0 && known(*first, *second) & BEGINS != 0 {
                return Some(at);
            }
            at = at.saturating_add(usize::from(step.max(1)));
        }
        (at < bytes.len()).then_some(at)
    }

    /// The first form in `bytes` from `from` on, and where it begins; the longest of those that begin there.
    fn first(&self, bytes: &[u8], mut from: usize) -> Option<(usize, &Form)> {
        while let Some(at) = self.candidate(bytes, from) {
            if let Some(number) = longest_at(&self.forms, bytes.get(at..).unwrap_or_default()) {
                return self.forms.get(number).map(|form| (at, form));
            }
            from = at.saturating_add(1);
        }
        None
    }

    /// Where, from `from` on, the first form may begin that ends behind `bytes`: the length of `bytes` if none does.
    fn open(&self, bytes: &[u8], from: usize) -> usize {
        let mut from = from.max(bytes.len().saturating_sub(self.longest.saturating_sub(1)));
        while let Some(at) = self.candidate(bytes, from) {
            let end = bytes.get(at..).unwrap_or_default();
            // Those that go on behind it are the next in order.
            let next = self.forms.partition_point(|form| form.needle.expose() <= end);
            if self.forms.get(next).is_some_and(|form| form.needle.expose().starts_with(end)) {
                return at;
            }
            from = at.saturating_add(1);
        }
        bytes.len()
    }

    /// Replaces every form in a whole text; `None` if there is none.
    pub(crate) fn replaced(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut from) = (Vec::new(), 0);
        while let Some((at, form)) = self.first(bytes, from) {
            out.extend_from_slice(bytes.get(from..at).unwrap_or_default());
            out.extend_from_slice(form.shown.as_bytes());
            from = at.saturating_add(form.needle.len());
        }
        if from == 0 {
            return None;
        }
        out.extend_from_slice(bytes.get(from..).unwrap_or_default());
        Some(out)
    }
}

/// A value percent-encoded, in each way that changes it: whatever is kept, with hex in either case, and a blank as `%20` or `+`. A value
/// without odd characters has none.
fn percent_encoded(value: &[u8]) -> Vec<Secret> {
    let mut all: Vec<Secret> = Vec::new();
    for (kept, plus) in KEPT.into_iter().flat_map(|kept| [(kept, false), (kept, true)]) {
        for lower in [false, true] {
            // Room for all, so that it leaves no copy behind.
            let mut text = String::with_capacity(value.len().saturating_mul(3));
            for piece in percent_encode(value, kept) {
                // What is kept has no `%` in it.
                match piece {
                    "%20" if plus => text.push('+'),
                    _ if lower && piece.starts_with('%') => text.push_str(&piece.to_ascii_lowercase()),
                    _ => text.push_str(piece),
                }
            }
            let text = Secret::from(text);
            if text.expose() != value && all.iter().all(|known| known.expose() != text.expose()) {
                all.push(text);
            }
        }
    }
    all
}

/// The part of a value's base64 that does not depend on what stands around it, where `offset` bytes of a group precede it.
fn base64_inside(value: &[u8], offset: usize) -> Secret {
    let padded = Zeroizing::new([vec![0; offset], value.to_vec()].concat());
    let text = Zeroizing::new(STANDARD_NO_PAD.encode(&*padded));
    // Characters that also carry bits of what is before or behind.
    let start = match offset {
        0 => 0,
        1 => 2,
        _ => 3,
    };
    let end = text.len().saturating_sub(usize::from(!padded.len().is_multiple_of(3)));
    Secret::new(text.as_bytes().get(start..end).unwrap_or_default().to_vec())
}

/// Masks a body as it passes; the length stays the same. What may be the beginning of a value is held back until more comes, or a message
/// ends ([`Masker::flush`]).
pub struct Masker {
    forms: Arc<Forms>,
    held: Zeroizing<Vec<u8>>,
    /// How many of the held bytes are shown already.
    flushed: usize,
}

impl Masker {
    pub(crate) fn new(forms: Arc<Forms>) -> Self {
        // Room for all that is ever held, so that the buffer never moves and leaves a copy behind.
        let held = Zeroizing::new(Vec::with_capacity(forms.longest));
        Self { forms, held, flushed: 0 }
    }

    /// Masks these from the next piece on. What is held stays held: as the beginning of what comes it is looked at once more.
    pub(crate) fn follow(&mut self, forms: Arc<Forms>) {
        // As in `new`.
        let mut held = Zeroizing::new(Vec::with_capacity(forms.longest.max(self.held.len())));
        held.extend_from_slice(&self.held);
        *self = Self { forms, held, flushed: self.flushed };
    }

    /// Takes a piece and appends to `out` what may be shown.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        if self.forms.forms.is_empty() && self.held.is_empty() {
            out.extend_from_slice(piece);
            return;
        }
        let joined;
        let bytes = if self.held.is_empty() {
            piece
        } else {
            joined = Zeroizing::new([self.held.as_slice(), piece].concat());
            joined.as_slice()
        };
        let start = out.len();
        let (mut from, mut open) = (0usize, self.forms.open(bytes, 0));
        while let Some((at, form)) = self.forms.first(bytes, from) {
            // A longer form may begin earlier and only not have ended yet.
            if open < at {
                break;
            }
            out.extend_from_slice(bytes.get(from..at).unwrap_or_default());
            let shown = form.shown.bytes().chain(std::iter::repeat(b'*'));
            out.extend(shown.take(form.needle.len()));
            from = at.saturating_add(form.needle.len());
            if open < from {
                open = self.forms.open(bytes, from);
            }
        }
        out.extend_from_slice(bytes.get(from..open).unwrap_or_default());
        self.held.clear();
        self.held.extend_from_slice(bytes.get(open..).unwrap_or_default());
        // As many bytes have come out as went in up to there.
        let again = self.flushed.min(open);
        out.drain(start..start.saturating_add(again));
        self.flushed = self.flushed.saturating_sub(again);
    }

    /// A message ends here, and more may come only when somebody has read all of it: shows what is held, if it is so short that it may stand there by
    /// chance. It is remembered all the same. If a value does go on behind it, the rest of that is masked: where messages end is the server's word, or
    /// the guest's who got it to say so.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if self.held.len() < SHORTEST_MASKED {
            out.extend_from_slice(self.held.get(self.flushed..).unwrap_or_default());
            self.flushed = self.held.len();
        }
    }

    /// The body is over: what was held back is no value. Without this call it is overwritten and never shown.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        // A whole shorter form may have waited for the rest of a longer one.
        let masked = self.forms.replaced_in_place(&self.held);
        let rest = masked.as_deref().unwrap_or(&self.held);
        out.extend_from_slice(rest.get(self.flushed..).unwrap_or_default());
        self.held.clear();
        self.flushed = 0;
    }
}

impl Forms {
    /// As [`Forms::replaced`], of the same length.
    fn replaced_in_place(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = bytes.to_vec();
        let mut from = 0usize;
        while let Some((start, form)) = self.first(&out, from) {
            let end = start.saturating_add(form.needle.len());
            for (byte, shown) in
                out.get_mut(start..end)?.iter_mut().zip(form.shown.bytes().chain(std::iter::repeat(b'*')))
            {
                *byte = shown;
            }
            from = end;
        }
        (from > 0).then_some(out)
    }
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Masker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memchr::memmem;
    use percent_encoding::utf8_percent_encode;
    use proptest::prelude::*;

    const VALUE: &str = "real/secret+value==0123";
    const SHOWN: &str = "placeholder";

    fn forms() -> Arc<Forms> {
        let (value, other) = (Secret::from(VALUE.to_owned()), Secret::from("another-value".to_owned()));
        Arc::new(Forms::new([(&value, SHOWN), (&other, "x")]))
    }

    fn holds(bytes: &[u8], needle: &[u8]) -> bool {
        memmem::find(bytes, needle).is_some()
    }

    #[test]
    fn all_forms_are_replaced() {
        let forms = forms();
        for text in [
            format!("token={VALUE};"),
            format!("q={}", utf8_percent_encode(VALUE, UNRESERVED)),
            STANDARD_NO_PAD.encode(format!("user:{VALUE}")),
            STANDARD_NO_PAD.encode(format!("usr:{VALUE}")),
            STANDARD_NO_PAD.encode(format!("us:{VALUE}tail")),
        ] {
            let masked = forms.replaced(text.as_bytes()).unwrap_or_else(|| panic!("{text} is not masked"));
            assert!(holds(&masked, SHOWN.as_bytes()), "{text}");
        }
        assert!(forms.replaced(b"nothing of it").is_none());
    }

    /// One text, as servers write it: RFC 3986, .NET, PHP and Java, Python, JavaScript.
    #[test]
    fn each_percent_encoding_that_is_usual_is_replaced() {
        let value = Secret::from("top secret/val*ue~(+)=".to_owned());
        let forms = Forms::new([(&value, SHOWN)]);
        for text in [
            "top%20secret%2Fval%2Aue~%28%2B%29%3D",
            "top%20secret%2fval%2aue~%28%2b%29%3d",
            "top+secret%2Fval%2Aue~%28%2B%29%3D",
            "top+secret%2fval*ue%7e%28%2b%29%3d",
            "top+secret%2Fval*ue%7E%28%2B%29%3D",
            "top+secret%2Fval%2Aue%7E%28%2B%29%3D",
            "top%20secret/val%2Aue~%28%2B%29%3D",
            "top+secret/val%2Aue~%28%2B%29%3D",
            "top%20secret%2Fval*ue~(%2B)%3D",
        ] {
            let masked = forms.replaced(format!("q={text}&").as_bytes());
            assert_eq!(masked.as_deref(), Some(format!("q={SHOWN}&").as_bytes()), "{text}");
        }
        assert!(percent_encoded(b"ghp_0123-456.789").is_empty(), "most values have no such form");
    }

    #[test]
    fn a_short_value_is_not_masked() {
        let short = Secret::from("abc".to_owned());
        assert!(Forms::new([(&short, "p")]).replaced(b"abcabc").is_none());
    }

    #[test]
    fn a_body_that_breaks_off_shows_no_beginning_of_a_value() {
        let mut masker = Masker::new(forms());
        let mut out = Vec::new();
        masker.feed(b"hello real/secr", &mut out);
        assert_eq!(out, b"hello ");
        drop(masker);
    }

    #[test]
    fn what_only_looked_like_a_value_comes_out_at_the_end() {
        let mut masker = Masker::new(forms());
        let mut out = Vec::new();
        masker.feed(b"real/secr", &mut out);
        masker.feed(b"x another-valu", &mut out);
        masker.finish(&mut out);
        assert_eq!(out, b"real/secrx another-valu");
    }

    #[test]
    fn another_set_of_values_is_followed_with_what_is_held() {
        let (value, next) = (Secret::from(VALUE.to_owned()), Secret::from("the-next-value".to_owned()));
        let both = Arc::new(Forms::new([(&next, "next"), (&value, SHOWN)]));
        let mut masker = Masker::new(forms());
        let mut out = Vec::new();
        masker.feed(b"1 real/secret", &mut out);
        assert_eq!(out, b"1 ");
        masker.follow(Arc::clone(&both));
        masker.feed(b"+value==0123 2 the-ne", &mut out);
        masker.follow(both);
        masker.feed(b"xt-value 3 real/", &mut out);
        // One that masks nothing gives back what is held, in its place.
        masker.follow(Arc::default());
        masker.feed(b" 4", &mut out);
        masker.finish(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), "1 placeholder************ 2 next********** 3 real/ 4");
    }

    #[test]
    fn at_a_messages_end_what_may_stand_there_by_chance_is_shown_and_remembered() {
        let mut masker = Masker::new(forms());
        let mut out = Vec::new();
        masker.feed(b"1 rea", &mut out);
        masker.flush(&mut out);
        masker.flush(&mut out);
        assert_eq!(out, b"1 rea");
        masker.feed(b"l/s", &mut out);
        assert_eq!(out, b"1 rea");
        masker.flush(&mut out);
        assert_eq!(out, b"1 real/s");
        masker.feed(b"ec", &mut out);
        masker.flush(&mut out);
        assert_eq!(out, b"1 real/s", "eight do not stand there by chance");
        masker.feed(b"ret+value==0123 2 an", &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "1 real/solder************ 2 ", "the rest of it is masked");
        masker.flush(&mut out);
        masker.follow(Arc::default());
        masker.feed(b"d", &mut out);
        assert!(out.ends_with(b" 2 and"));
        masker.follow(forms());
        masker.feed(b" real", &mut out);
        masker.flush(&mut out);
        masker.finish(&mut out);
        masker.finish(&mut out);
        assert!(out.ends_with(b" 2 and real"), "once each");
    }

    /// What a masker does, said simply: every form is tried at every place.
    struct Simple {
        forms: Arc<Forms>,
        held: Vec<u8>,
    }

    impl Simple {
        fn first<'a>(forms: &'a Forms, bytes: &[u8]) -> Option<(usize, &'a Form)> {
            (0..bytes.len()).find_map(|at| {
                let there = forms.forms.iter().filter(|form| bytes[at..].starts_with(form.needle.expose()));
                Some((at, there.max_by_key(|form| form.needle.len())?))
            })
        }

        fn open(forms: &Forms, bytes: &[u8]) -> usize {
            let goes_on = |at: usize, form: &Form| {
                form.needle.len() > bytes.len() - at && form.needle.expose().starts_with(&bytes[at..])
            };
            let mut places = 0..bytes.len();
            places.find(|at| forms.forms.iter().any(|form| goes_on(*at, form))).unwrap_or(bytes.len())
        }

        fn feed(&mut self, piece: &[u8], is_last: bool, out: &mut Vec<u8>) {
            let whole = [self.held.as_slice(), piece].concat();
            let mut rest = whole.as_slice();
            while let Some((at, form)) = Self::first(&self.forms, rest) {
                if !is_last && Self::open(&self.forms, rest) < at {
                    break;
                }
                out.extend_from_slice(&rest[..at]);
                out.extend(form.shown.bytes().chain(std::iter::repeat(b'*')).take(form.needle.len()));
                rest = &rest[at + form.needle.len()..];
            }
            let open = if is_last { rest.len() } else { Self::open(&self.forms, rest) };
            out.extend_from_slice(&rest[..open]);
            self.held = rest[open..].to_vec();
        }
    }

    fn forms_of(values: &[String]) -> Arc<Forms> {
        let values: Vec<Secret> = values.iter().cloned().map(Secret::from).collect();
        Arc::new(Forms::new(values.iter().map(|value| (value, SHOWN))))
    }

    /// Values of few letters and parts of them, so that they contain each other, and the pieces of a text of their forms, whole and not.
    fn values_and_text() -> impl Strategy<Value = (Vec<String>, Vec<Vec<u8>>)> {
        let values = proptest::collection::vec(("[ab%]{8,12}", 0..5usize), 1..4);
        let part = (any::<proptest::sample::Index>(), 6..40usize, "[ab%]{0,2}");
        let cuts = proptest::collection::vec(1..12usize, 0..20);
        (values, proptest::collection::vec(part, 0..8), cuts).prop_map(|(values, parts, cuts)| {
            let inner =
                |(value, at): &(String, usize)| value.get(*at..at + SHORTEST_MASKED).map(str::to_owned);
            let inner: Vec<String> = values.iter().filter_map(inner).collect();
            let values: Vec<String> = values.into_iter().map(|(value, _)| value).chain(inner).collect();
            let forms = forms_of(&values);
            let mut text = Vec::new();
            for (number, length, other) in parts {
                let needle = number.get(&forms.forms).needle.expose();
                text.extend_from_slice(&needle[..length.min(needle.len())]);
                text.extend(other.bytes());
            }
            let mut pieces = Vec::new();
            for cut in cuts {
                let rest = text.split_off(cut.min(text.len()));
                pieces.push(std::mem::replace(&mut text, rest));
            }
            pieces.push(text);
            (values, pieces)
        })
    }

    proptest! {
        #[test]
        fn a_masker_does_what_trying_every_form_at_every_place_does((values, pieces) in values_and_text()) {
            let forms = forms_of(&values);
            let whole = pieces.concat();
            for from in 0..=whole.len() {
                let rest = &whole[from..];
                let found = |(at, form): (usize, &Form)| (at, form.needle.len());
                let simple = Simple::first(&forms, rest).map(found);
                prop_assert_eq!(forms.first(&whole, from).map(found), simple.map(|(at, length)| (from + at, length)));
                prop_assert_eq!(forms.open(&whole, from), from + Simple::open(&forms, rest));
            }
            let mut masker = Masker::new(Arc::clone(&forms));
            let mut simple = Simple { forms, held: Vec::new() };
            let (mut out, mut expected) = (Vec::new(), Vec::new());
            for piece in &pieces {
                masker.feed(piece, &mut out);
                simple.feed(piece, false, &mut expected);
                prop_assert_eq!(&out, &expected);
            }
            masker.finish(&mut out);
            simple.feed(b"", true, &mut expected);
            prop_assert_eq!(out, expected);
        }

        #[test]
        fn messages_ends_show_no_more_of_a_value_than_may_stand_there_by_chance(
            (values, pieces) in values_and_text(),
            ends in proptest::collection::vec(any::<bool>(), 20),
        ) {
            let forms = forms_of(&values);
            let (mut with, mut without) = (Masker::new(Arc::clone(&forms)), Masker::new(forms));
            let (mut out, mut expected) = (Vec::new(), Vec::new());
            for (piece, is_end) in pieces.iter().zip(ends) {
                with.feed(piece, &mut out);
                without.feed(piece, &mut expected);
                if is_end {
                    with.flush(&mut out);
                    if with.held.len() < SHORTEST_MASKED {
                        prop_assert_eq!(out.len(), expected.len() + without.held.len(), "nothing waits");
                    }
                }
            }
            with.finish(&mut out);
            without.finish(&mut expected);
            let whole = pieces.concat();
            prop_assert_eq!(out.len(), whole.len());
            let mut run = 0;
            for ((out, expected), plain) in out.iter().zip(&expected).zip(&whole) {
                run = if out == expected { 0 } else { run + 1 };
                prop_assert!(out == expected || out == plain);
                prop_assert!(run < SHORTEST_MASKED);
            }
        }

        #[test]
        fn no_value_comes_through_wherever_it_is_cut(
            texts in proptest::collection::vec(prop_oneof![
                Just(VALUE.as_bytes().to_vec()),
                Just(b"another-value".to_vec()),
                Just(utf8_percent_encode(VALUE, UNRESERVED).to_string().into_bytes()),
                Just(VALUE.as_bytes()[..9].to_vec()),
                proptest::collection::vec(any::<u8>(), 0..20),
            ], 0..8),
            cuts in proptest::collection::vec(1usize..40, 0..20),
        ) {
            let whole = texts.concat();
            let mut masker = Masker::new(forms());
            let (mut out, mut rest) = (Vec::new(), whole.as_slice());
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                masker.feed(piece, &mut out);
                rest = behind;
            }
            masker.feed(rest, &mut out);
            masker.finish(&mut out);
            prop_assert_eq!(out.len(), whole.len());
            prop_assert!(!holds(&out, VALUE.as_bytes()));
            prop_assert!(!holds(&out, b"another-value"));
            if !holds(&whole, b"real") && !holds(&whole, b"another") {
                prop_assert_eq!(out, whole);
            }
        }
    }
}
