//! Moves bytes between a message and the guest's scattered buffers.

use std::io::{IoSlice, IoSliceMut};

/// The sum of the buffers' lengths.
pub(crate) fn total(buffers: &[IoSlice<'_>]) -> usize {
    buffers.iter().fold(0usize, |sum, buffer| sum.saturating_add(buffer.len()))
}

/// The sum of the buffers' lengths.
pub(crate) fn total_mut(buffers: &[IoSliceMut<'_>]) -> usize {
    buffers.iter().fold(0usize, |sum, buffer| sum.saturating_add(buffer.len()))
}

/// Copies up to `len` bytes from the front.
pub(crate) fn gather(buffers: &[IoSlice<'_>], len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len.min(total(buffers)));
    for buffer in buffers {
        let Some(room) = len.checked_sub(out.len()) else { break };
        let (part, _) = buffer.split_at(room.min(buffer.len()));
        out.extend_from_slice(part);
    }
    out
}

/// The `len` bytes from `skip` on, as slices.
pub(crate) fn window<'a>(buffers: &'a [IoSlice<'_>], mut skip: usize, mut len: usize) -> Vec<IoSlice<'a>> {
    let mut out = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let (skipped, rest) = buffer.split_at(skip.min(buffer.len()));
        skip = skip.saturating_sub(skipped.len());
        let (part, _) = rest.split_at(len.min(rest.len()));
        len = len.saturating_sub(part.len());
        if !part.is_empty() {
            out.push(IoSlice::new(part));
        }
    }
    out
}

/// The `len` bytes from `skip` on, as slices to fill.
pub(crate) fn window_mut<'a>(
    buffers: &'a mut [IoSliceMut<'_>],
    mut skip: usize,
    mut len: usize,
) -> Vec<IoSliceMut<'a>> {
    let mut out = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let at = skip.min(buffer.len());
        let (skipped, rest) = buffer.split_at_mut(at);
        skip = skip.saturating_sub(skipped.len());
        let at = len.min(rest.len());
        let (part, _) = rest.split_at_mut(at);
        len = len.saturating_sub(part.len());
        if !part.is_empty() {
            out.push(IoSliceMut::new(part));
        }
    }
    out
}

/// Copies `bytes` to the front of the buffers; what does not fit is left out. Returns the number of bytes copied.
pub(crate) fn scatter(buffers: &mut [IoSliceMut<'_>], mut bytes: &[u8]) -> usize {
    let mut copied = 0usize;
    for buffer in buffers {
        let len = bytes.len().min(buffer.len());
        let (part, rest) = bytes.split_at(len);
        let (room, _) = buffer.split_at_mut(len);
        room.copy_from_slice(part);
        copied = copied.saturating_add(len);
        bytes = rest;
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cross_buffer_borders() {
        let (a, b, c) = ([1u8, 2], [3u8], [4u8, 5, 6]);
        let buffers = [IoSlice::new(&a), IoSlice::new(&b), IoSlice::new(&c)];
        for skip in 0..8 {
            for len in 0..8 {
                let all = [1u8, 2, 3, 4, 5, 6];
                let want: Vec<u8> = all.iter().copied().skip(skip).take(len).collect();
                let got: Vec<u8> =
                    window(&buffers, skip, len).iter().flat_map(|s| s.iter().copied()).collect();
                assert_eq!(got, want, "{skip} {len}");
            }
        }
        assert_eq!(gather(&buffers, 4), [1, 2, 3, 4]);
        assert_eq!(gather(&buffers, 99).len(), 6);
    }

    #[test]
    fn scatter_stops_at_the_end() {
        let (mut a, mut b) = ([0u8; 2], [0u8; 2]);
        let mut buffers = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        assert_eq!(scatter(&mut buffers, &[1, 2, 3, 4, 5]), 4);
        {
            let mut window = window_mut(&mut buffers, 1, 2);
            assert_eq!(scatter(&mut window, &[9, 8]), 2);
        }
        assert_eq!((a, b), ([1, 9], [8, 4]));
    }
}
