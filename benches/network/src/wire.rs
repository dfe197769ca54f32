//! What carries a guest's frames: the gateway's ring, or the byte stream that QEMU and passt have between them.

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use frame_ring::{Link, LinkError, MAX_FRAME, Sent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Ethernet frames to and from the network. Neither call waits.
pub(crate) trait Wire {
    /// Sends a frame given in two pieces; `false` when there is no room now. TCP's checksum is left to do.
    fn send(&mut self, headers: &[u8], payload: &[u8]) -> Result<bool>;
    /// The next frame, if there is one.
    fn receive(&mut self) -> Result<Option<&[u8]>>;
    /// Waits for a frame, or for room after [`Wire::send`] found none.
    fn wait(&mut self, patience: Duration) -> Result<()>;
}

/// Bytes of the header in front of a frame in the ring (virtio 1.3 §5.1.6).
const OFFLOAD: usize = 12;
/// With it: the checksum of the TCP segment that begins behind Ethernet's and IPv4's header is left to do.
const TCP: [u8; OFFLOAD] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
const NOTHING: [u8; OFFLOAD] = [0; OFFLOAD];

/// The guest's side of a frame ring.
pub(crate) struct Ring {
    link: Link,
    buffer: Vec<u8>,
}

impl Ring {
    pub(crate) fn new(link: Link) -> Self {
        Self { link, buffer: vec![0; MAX_FRAME] }
    }
}

fn broken(error: LinkError) -> anyhow::Error {
    anyhow::anyhow!("the frame ring: {}", error.0)
}

/// Whether a frame is TCP over IPv4.
fn is_tcp(headers: &[u8]) -> bool {
    headers.get(12..14) == Some(&[8, 0]) && headers.get(23) == Some(&6)
}

impl Wire for Ring {
    fn send(&mut self, headers: &[u8], payload: &[u8]) -> Result<bool> {
        let offload = if is_tcp(headers) { &TCP } else { &NOTHING };
        Ok(self.link.send(&[offload, headers, payload]).map_err(broken)? == Sent::Taken)
    }

    fn receive(&mut self) -> Result<Option<&[u8]>> {
        let length = self.link.receive(&mut self.buffer).map_err(broken)?;
        Ok(length.and_then(|length| self.buffer.get(OFFLOAD..length)))
    }

    fn wait(&mut self, patience: Duration) -> Result<()> {
        wait(self.link.bell(), PollFlags::IN, patience)?;
        self.link.bell().answer();
        Ok(())
    }
}

/// `-netdev stream`: a length of four bytes before each frame, nothing left to do for the other side.
pub(crate) struct Stream {
    socket: UnixStream,
    /// What is left of a frame that is partly sent.
    rest: Vec<u8>,
    buffer: Vec<u8>,
    /// Where in the buffer what was read begins and ends.
    begin: usize,
    end: usize,
}

impl Stream {
    pub(crate) fn new(socket: UnixStream) -> Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, rest: Vec::new(), buffer: vec![0; 1 << 20], begin: 0, end: 0 })
    }

    /// Whether nothing is left to send.
    fn flush(&mut self) -> Result<bool> {
        while !self.rest.is_empty() {
            match self.socket.write(&self.rest) {
                Ok(sent) => drop(self.rest.drain(..sent)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("passt does not take frames any more"),
            }
        }
        Ok(true)
    }

    /// The place in the buffer of a frame that is whole.
    fn whole(&self) -> Option<std::ops::Range<usize>> {
        let read = self.buffer.get(self.begin..self.end)?;
        let (length, rest) = read.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let begin = self.begin + 4;
        (rest.len() >= length).then(|| begin..begin + length)
    }
}

impl Wire for Stream {
    fn send(&mut self, headers: &[u8], payload: &[u8]) -> Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        let total = headers.len() + payload.len();
        let length = u32::try_from(total)?.to_be_bytes();
        let pieces = [IoSlice::new(&length), IoSlice::new(headers), IoSlice::new(payload)];
        let sent = match self.socket.write_vectored(&pieces) {
            Ok(sent) => sent,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("passt does not take frames any more"),
        };
        if sent < 4 + total {
            self.rest.extend(length.iter().chain(headers).chain(payload).skip(sent));
        }
        Ok(true)
    }

    fn receive(&mut self) -> Result<Option<&[u8]>> {
        loop {
            if let Some(frame) = self.whole() {
                self.begin = frame.end;
                return Ok(self.buffer.get(frame));
            }
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.socket.read(room) {
                Ok(0) => bail!("passt is gone"),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("passt gives no frames any more"),
            }
        }
    }

    fn wait(&mut self, patience: Duration) -> Result<()> {
        let room = if self.flush()? { PollFlags::empty() } else { PollFlags::OUT };
        wait(&self.socket, PollFlags::IN | room, patience)
    }
}

fn wait(on: &impl AsFd, flags: PollFlags, patience: Duration) -> Result<()> {
    let mut polled = [PollFd::new(on, flags)];
    match poll(&mut polled, Some(&Timespec::try_from(patience)?)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cross_a_stream_whole_however_it_is_cut() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut near, mut far) = (Stream::new(near).unwrap(), Stream::new(far).unwrap());
        let (mut sent, mut received) = (0u32, 0u32);
        while received < 200 {
            while sent < 200 && near.send(&sent.to_be_bytes(), &vec![sent as u8; 60_000]).unwrap() {
                sent += 1;
            }
            assert!(sent == 200 || sent > received, "there was no room, so there are frames");
            while let Some(frame) = far.receive().unwrap() {
                assert_eq!((frame.len(), &frame[..4]), (60_004, &received.to_be_bytes()[..]));
                assert!(frame[4..].iter().all(|byte| *byte == received as u8));
                received += 1;
            }
            near.flush().unwrap();
        }
    }
}
