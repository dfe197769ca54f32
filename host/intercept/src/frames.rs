//! A guest's WebSocket frames, unmasked to be watched (RFC 6455 §5.2). Only looked at: what goes on is what came.

/// Follows the frames of one direction.
pub(crate) struct Unmask<W = vault::Watch> {
    watch: W,
    header: Vec<u8>,
    mask: [u8; 4],
    /// Payload bytes left in this frame, and how many there were.
    left: u64,
    seen: usize,
}

/// What is told of the payload.
pub(crate) trait Watching {
    fn feed(&mut self, payload: &[u8]) -> Result<(), vault::Refusal>;
}

impl Watching for vault::Watch {
    fn feed(&mut self, payload: &[u8]) -> Result<(), vault::Refusal> {
        Self::feed(self, payload)
    }
}

impl<W: Watching> Unmask<W> {
    pub(crate) const fn new(watch: W) -> Self {
        Self { watch, header: Vec::new(), mask: [0; 4], left: 0, seen: 0 }
    }

    /// Looks at the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), vault::Refusal> {
        let mut rest = bytes;
        let mut payload = Vec::with_capacity(bytes.len());
        while let Some((first, after)) = rest.split_first() {
            if self.left == 0 {
                self.header.push(*first);
                rest = after;
                self.begin();
                continue;
            }
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(count);
            let mask = self.mask;
            let phase = self.seen;
            payload.extend(now.iter().zip(mask.iter().cycle().skip(phase)).map(|(byte, mask)| byte ^ mask));
            self.seen = phase.wrapping_add(count) & 3;
            self.left = self.left.saturating_sub(count as u64);
            rest = later;
        }
        self.watch.feed(&payload)
    }

    /// Starts on a payload when the header is whole.
    fn begin(&mut self) {
        let [_, second, more @ ..] = self.header.as_slice() else { return };
        let masked = second & 0x80 != 0;
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let key = if masked { 4 } else { 0 };
        if more.len() < extended + key {
            return;
        }
        let (length, key) = more.split_at(extended);
        self.left = match extended {
            0 => u64::from(second & 0x7f),
            _ => length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        self.mask = key.try_into().unwrap_or([0; 4]);
        self.seen = 0;
        self.header.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<u8>);

    impl Watching for &mut Seen {
        fn feed(&mut self, payload: &[u8]) -> Result<(), vault::Refusal> {
            self.0.extend_from_slice(payload);
            Ok(())
        }
    }

    fn frame(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut out = vec![0x81];
        let flag = if mask.is_some() { 0x80 } else { 0 };
        match payload.len() {
            n if n < 126 => out.push(flag | n as u8),
            n if n < 65536 => {
                out.push(flag | 126);
                out.extend((n as u16).to_be_bytes());
            }
            n => {
                out.push(flag | 127);
                out.extend((n as u64).to_be_bytes());
            }
        }
        let mask = mask.inspect(|mask| out.extend(mask)).unwrap_or_default();
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    proptest::proptest! {
        #[test]
        fn payloads_are_seen_however_they_are_cut(
            lengths in proptest::collection::vec(proptest::sample::select(vec![0usize, 1, 5, 125, 126, 127, 300, 65535, 65536]), 1..5),
            masks in proptest::collection::vec(proptest::option::of(proptest::array::uniform4(0u8..)), 5),
            cut in 1usize..4000,
        ) {
            let (mut wire, mut plain) = (Vec::new(), Vec::new());
            for (number, (length, mask)) in lengths.iter().zip(masks).enumerate() {
                let payload: Vec<u8> = (0..*length).map(|at| (at + number) as u8).collect();
                wire.extend(frame(&payload, mask));
                plain.extend(payload);
            }
            let mut seen = Seen::default();
            let mut unmask = Unmask::new(&mut seen);
            for piece in wire.chunks(cut) {
                unmask.feed(piece).expect("nothing is refused");
            }
            proptest::prop_assert_eq!(seen.0, plain);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes: Vec<u8>) {
            let mut seen = Seen::default();
            Unmask::new(&mut seen).feed(&bytes).expect("nothing is refused");
            proptest::prop_assert!(seen.0.len() <= bytes.len());
        }
    }
}
