//! Where the messages of an answer end, if it is a stream of them: there nothing may be held back, as the guest may have to speak next.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// How messages are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// A byte of flags and a length of four bytes before each message (gRPC, Connect).
    Envelope,
    /// The length of all of it in its first four bytes (AWS's event streams).
    Event,
}

/// Bytes of an event without headers and payload: two lengths and two checksums.
const LEAST_EVENT: u32 = 16;

/// Follows the messages of one answer. Only looked at: what goes on is what came. Their lengths are the server's word, so nothing but the time of
/// a flush may hang on them.
#[derive(Debug)]
pub(crate) struct Borders {
    framing: Framing,
    /// What is there of a message's head, while it is not whole.
    head: Vec<u8>,
    /// Bytes left of the message behind its head.
    left: u32,
    /// It is no such stream after all.
    lost: bool,
}

impl Borders {
    /// For an answer whose content type says that it is such a stream.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(CONTENT_TYPE)?.as_bytes().to_ascii_lowercase();
        let is = |begin: &str| kind.starts_with(begin.as_bytes());
        let framing = if is("application/grpc") || is("application/connect+") {
            Framing::Envelope
        } else if is("application/vnd.amazon.eventstream") {
            Framing::Event
        } else {
            return None;
        };
        Some(Self { framing, head: Vec::new(), left: 0, lost: false })
    }

    /// Takes the next bytes; whether a message ends with them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Some((first, behind)) = rest.split_first() {
            if self.lost {
                return false;
            }
            if self.left == 0 {
                self.head.push(*first);
                rest = behind;
                self.begin();
                continue;
            }
            let count = self.left.min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
            self.left = self.left.saturating_sub(count);
            rest = rest.get(count as usize..).unwrap_or_default();
        }
        !self.lost && self.left == 0 && self.head.is_empty()
    }

    /// Starts on a message when its head is whole.
    fn begin(&mut self) {
        let left = match (self.framing, self.head.as_slice()) {
            // gRPC has the lowest flag, Connect one more, gRPC-Web the highest. Text, which may only be called such a stream, has others.
            (Framing::Envelope, [flags, ..]) if flags & 0x7c != 0 => None,
            (Framing::Envelope, &[_, a, b, c, d]) => Some(u32::from_be_bytes([a, b, c, d])),
            (Framing::Event, &[a, b, c, d]) => {
                let all = u32::from_be_bytes([a, b, c, d]);
                (all >= LEAST_EVENT).then(|| all.saturating_sub(4))
            }
            _ => return,
        };
        self.head.clear();
        self.lost = left.is_none();
        self.left = left.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn borders(kind: &'static str) -> Option<Borders> {
        let value = http::HeaderValue::from_static(kind);
        Borders::of(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
    }

    fn message(framing: Framing, payload: usize) -> Vec<u8> {
        let length = payload as u32;
        let mut all = match framing {
            Framing::Envelope => [&[1][..], &length.to_be_bytes()].concat(),
            Framing::Event => [&(length + LEAST_EVENT).to_be_bytes()[..], &[7; 12]].concat(),
        };
        all.resize(all.len() + payload, 0x20);
        all
    }

    const KINDS: [(&str, Framing); 2] =
        [("application/grpc", Framing::Envelope), ("application/vnd.amazon.eventstream", Framing::Event)];

    #[test]
    fn a_stream_of_messages_is_known_by_its_type() {
        let framing = |kind| borders(kind).map(|borders| borders.framing);
        for kind in ["application/grpc+proto", "Application/gRPC; x=y", "application/grpc-web+json"] {
            assert_eq!(framing(kind), Some(Framing::Envelope), "{kind}");
        }
        assert_eq!(framing("application/connect+json"), Some(Framing::Envelope));
        assert_eq!(framing("application/vnd.amazon.eventstream"), Some(Framing::Event));
        for kind in ["application/json", "text/event-stream", "application/connect", "application/proto"] {
            assert_eq!(framing(kind), None, "{kind}");
        }
        assert!(Borders::of(&HeaderMap::new()).is_none());
    }

    #[test]
    fn what_is_no_such_stream_has_no_borders_from_there_on() {
        for (kind, framing) in KINDS {
            let wrong = match framing {
                Framing::Envelope => b"{\0\0\0\0".to_vec(),
                Framing::Event => vec![0, 0, 0, 15],
            };
            let mut borders = borders(kind).expect("a stream");
            assert!(borders.feed(&message(framing, 3)), "{kind}");
            assert!(!borders.feed(&wrong), "{kind}");
            assert!(!borders.feed(&message(framing, 3)), "{kind}");
        }
    }

    /// A length that is never reached is followed for ever, and costs nothing.
    #[test]
    fn the_greatest_length_is_followed() {
        let mut borders = borders("application/grpc").expect("a stream");
        assert!(!borders.feed(&[0, 0xff, 0xff, 0xff, 0xff]));
        for _ in 0..4095 {
            assert!(!borders.feed(&[0; 1 << 20]));
        }
        assert!(!borders.feed(&[0; (1 << 20) - 2]));
        assert!(borders.feed(&[0]));
        assert!(borders.feed(&[0; 10]), "two more without anything in them");
    }

    proptest! {
        #[test]
        fn each_message_ends_where_it_ends_however_it_is_cut(
            lengths in proptest::collection::vec(0usize..40, 1..6),
            cuts in proptest::collection::vec(1usize..20, 0..40),
        ) {
            for (kind, framing) in KINDS {
                let messages: Vec<_> = lengths.iter().map(|length| message(framing, *length)).collect();
                let ends: Vec<usize> = messages.iter().scan(0, |at, message| {
                    *at += message.len();
                    Some(*at)
                }).collect();
                let whole = messages.concat();
                let (mut followed, mut at) = (borders(kind).expect("a stream"), 0);
                for cut in cuts.iter().copied().chain([whole.len()]) {
                    let next = whole.len().min(at + cut);
                    if next > at {
                        prop_assert_eq!(followed.feed(&whole[at..next]), ends.contains(&next));
                    }
                    at = next;
                }
                // At every place once.
                for cut in 1..whole.len() {
                    let mut followed = borders(kind).expect("a stream");
                    prop_assert_eq!(followed.feed(&whole[..cut]), ends.contains(&cut));
                    prop_assert!(followed.feed(&whole[cut..]));
                }
            }
        }

        #[test]
        fn any_bytes_do_no_harm(pieces: Vec<Vec<u8>>) {
            for (kind, _) in KINDS {
                let mut borders = borders(kind).expect("a stream");
                for piece in &pieces {
                    borders.feed(piece);
                }
                prop_assert!(borders.head.len() < 5);
            }
        }
    }
}
