//! Values that a server sends back become placeholders again, so that they do not reach the guest.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use memchr::memmem;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// A shorter value is not masked: it may stand in a text by chance.
pub const SHORTEST_MASKED: usize = 8;

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
}

/// The forms of all values: as they are, percent-encoded as is usual, and base64 at each of its three offsets. The longest come first, so that a form
/// that contains another is taken as a whole.
#[derive(Default)]
pub(crate) struct Forms {
    forms: Vec<Form>,
    longest: usize,
}

impl Forms {
    /// From values and their placeholders.
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = (&'a Secret, &'a str)>) -> Self {
        let mut forms = Vec::new();
        for (value, shown) in values.into_iter().filter(|(value, _)| value.len() >= SHORTEST_MASKED) {
            let mut add = |needle: Secret| {
                let is_new = !forms.iter().any(|form: &Form| form.needle.expose() == needle.expose());
                if is_new && needle.len() >= SHORTEST_MASKED {
                    forms.push(Form { needle, shown: shown.to_owned() });
                }
            };
            add(value.duplicate());
            percent_encoded(value.expose()).into_iter().for_each(&mut add);
            for offset in 0..3 {
                add(base64_inside(value.expose(), offset));
            }
        }
        forms.sort_by_key(|form| std::cmp::Reverse(form.needle.len()));
        let longest = forms.first().map_or(0, |form| form.needle.len());
        Self { forms, longest }
    }

    /// The first form in `bytes`, and where it begins.
    fn first(&self, bytes: &[u8]) -> Option<(usize, &Form)> {
        let mut best: Option<(usize, &Form)> = None;
        for form in &self.forms {
            // Only an earlier one is of interest, with the longer one first at the same place.
            let end = best.map_or(bytes.len(), |(at, _)| {
                at.saturating_add(form.needle.len()).saturating_sub(1).min(bytes.len())
            });
            let Some(window) = bytes.get(..end) else { continue };
            if let Some(at) = memmem::find(window, form.needle.expose())
                && best.is_none_or(|(least, _)| at < least)
            {
                best = Some((at, form));
            }
        }
        best
    }

    /// Replaces every form in a whole text; `None` if there is none.
    pub(crate) fn replaced(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut rest) = (Vec::new(), bytes);
        while let Some((at, form)) = self.first(rest) {
            out.extend_from_slice(rest.get(..at).unwrap_or_default());
            out.extend_from_slice(form.shown.as_bytes());
            rest = rest.get(at.saturating_add(form.needle.len())..).unwrap_or_default();
        }
        if rest.len() == bytes.len() {
            return None;
        }
        out.extend_from_slice(rest);
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

/// Masks a body as it passes; the length stays the same. What may be the beginning of a value is held back until more comes.
pub struct Masker {
    forms: Arc<Forms>,
    held: Zeroizing<Vec<u8>>,
}

impl Masker {
    pub(crate) fn new(forms: Arc<Forms>) -> Self {
        // Room for all that is ever held, so that the buffer never moves and leaves a copy behind.
        let held = Zeroizing::new(Vec::with_capacity(forms.longest));
        Self { forms, held }
    }

    /// Masks these from the next piece on. What is held stays held: as the beginning of what comes it is looked at once more.
    pub(crate) fn follow(&mut self, forms: Arc<Forms>) {
        // As in `new`.
        let mut held = Zeroizing::new(Vec::with_capacity(forms.longest.max(self.held.len())));
        held.extend_from_slice(&self.held);
        *self = Self { forms, held };
    }

    /// Takes a piece and appends to `out` what may be shown.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        if self.forms.forms.is_empty() && self.held.is_empty() {
            out.extend_from_slice(piece);
            return;
        }
        let joined = Zeroizing::new([self.held.as_slice(), piece].concat());
        let mut rest = joined.as_slice();
        while let Some((at, form)) = self.forms.first(rest) {
            // A longer form may begin earlier and only not have ended yet.
            let open = self.open(rest);
            if open < at {
                break;
            }
            out.extend_from_slice(rest.get(..at).unwrap_or_default());
            let shown = form.shown.bytes().chain(std::iter::repeat(b'*'));
            out.extend(shown.take(form.needle.len()));
            rest = rest.get(at.saturating_add(form.needle.len())..).unwrap_or_default();
        }
        let (clear, open) = rest.split_at(self.open(rest));
        out.extend_from_slice(clear);
        let open = open.to_vec();
        self.held.clear();
        self.held.extend_from_slice(&open);
        drop(Zeroizing::new(open));
    }

    /// Where the first form may begin that ends behind `bytes`: the length of `bytes` if none does.
    fn open(&self, bytes: &[u8]) -> usize {
        let from = bytes.len().saturating_sub(self.forms.longest.saturating_sub(1));
        (from..bytes.len())
            .find(|at| {
                let end = bytes.get(*at..).unwrap_or_default();
                self.forms
                    .forms
                    .iter()
                    .any(|form| form.needle.len() > end.len() && form.needle.expose().starts_with(end))
            })
            .unwrap_or(bytes.len())
    }

    /// The body is over: what was held back is no value. Without this call it is overwritten and never shown.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        // A whole shorter form may have waited for the rest of a longer one.
        match self.forms.replaced_in_place(&self.held) {
            Some(masked) => out.extend_from_slice(&masked),
            None => out.extend_from_slice(&self.held),
        }
        self.held.clear();
    }
}

impl Forms {
    /// As [`Forms::replaced`], of the same length.
    fn replaced_in_place(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = bytes.to_vec();
        let mut from = 0usize;
        while let Some((at, form)) = out.get(from..).and_then(|rest| self.first(rest)) {
            let start = from.saturating_add(at);
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

    proptest! {
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
