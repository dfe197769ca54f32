//! What crosses the namespace's one interface: whatever gets past the gateway is there, whoever it is meant for.

use std::os::fd::OwnedFd;

use e2e::Verdict;
use memchr::memmem;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, sockopt};

/// Bytes of frames that may wait to be looked at; so many are not there in any case.
const BUFFER: usize = 64 << 20;
/// Bytes of the longest frame.
const LONGEST: usize = 1 << 17;

/// A tap on the interface, from its making on.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Begins to listen.
    pub fn tap() -> Result<Self, Verdict> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL))?;
        // Without the right to so much it is less: a case's last frame, which must be seen, shows that it sufficed.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER);
        Ok(Self(socket))
    }

    /// All frames since the last call.
    pub fn frames(&self) -> Result<Frames, Verdict> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; LONGEST];
        loop {
            match rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((count, _)) => frames.push(buffer.get(..count).unwrap_or_default().to_vec()),
                Err(Errno::AGAIN) => return Ok(Frames(frames)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Frames of the interface.
#[derive(Debug)]
pub struct Frames(Vec<Vec<u8>>);

impl Frames {
    /// Whether these bytes stand in one of them.
    pub fn have(&self, bytes: &str) -> bool {
        let finder = memmem::Finder::new(bytes);
        self.0.iter().any(|frame| finder.find(frame).is_some())
    }

    /// The numbers of the IP protocols in them, without those that are in there by right: TCP, UDP, and what the namespace's own hosts
    /// say about these by ICMP. Anything that is no IP counts as 256.
    pub fn odd_protocols(&self) -> Vec<u16> {
        let odd = |frame: &Vec<u8>| {
            let number = match (frame.get(12..14), frame.get(14..)) {
                (Some([8, 0]), Some(ip)) => ip.get(9).copied().map_or(256, u16::from),
                (Some([0x86, 0xdd]), Some(ip)) => ip.get(6).copied().map_or(256, u16::from),
                _ => 256,
            };
            // The ICMP messages of hosts about themselves: unreachable, and no echo.
            let told = match number {
                1 => frame.get(34) == Some(&3),
                58 => frame.get(54) == Some(&1),
                number => [6, 17].contains(&number),
            };
            (!told).then_some(number)
        };
        self.0.iter().filter_map(odd).collect()
    }
}
