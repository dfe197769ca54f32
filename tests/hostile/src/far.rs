//! The network of an evil guest: it sends back what comes, breaks its link, goes and comes again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use doorbell::Doorbell;
use frame_ring::{Link, MAX_FRAME, Pair, Side, pair};
use sandbox::packet;
use sandbox::plan::{self, Descriptors, ToVmm};

/// Most frames sent back in one round.
const AT_ONCE: u32 = 1000;

/// The network's side of the link.
pub(crate) struct Far {
    link: Link,
    memory: File,
    bell: Doorbell,
    guest_bell: Doorbell,
    buffer: Vec<u8>,
}

impl Far {
    /// A network, and what the guest's plan says of it.
    pub(crate) fn new(descriptors: &mut Descriptors) -> io::Result<(Self, plan::Network)> {
        let Pair { memory, guest_bell, network_bell } = pair()?;
        let plan = plan::Network {
            memory: descriptors.add(memory.try_clone()?),
            bell: descriptors.add(guest_bell.try_clone()?),
            far_bell: descriptors.add(network_bell.try_clone()?),
        };
        let (bell, guest_bell) = (Doorbell::from(network_bell), Doorbell::from(guest_bell));
        let link = Link::from_parts(memory.try_clone()?, Side::Network, bell.clone(), guest_bell.clone())?;
        let far = Self { link, memory: memory.into(), bell, guest_bell, buffer: vec![0; MAX_FRAME] };
        Ok((far, plan))
    }

    /// One of many rounds.
    pub(crate) fn round(&mut self, number: u32, vmm: &OwnedFd) -> io::Result<()> {
        match number % 64 {
            // Words and lengths that cannot be.
            40 => {
                for at in [0, 128, 512, 640, 4096, 4096 + u64::from(frame_ring::CAPACITY)] {
                    self.memory.write_all_at(&number.wrapping_mul(2_654_435_761).to_le_bytes(), at)?;
                }
                self.guest_bell.ring();
            }
            45 => drop(packet::send_now(vmm, &ToVmm::NetworkDown, &[])),
            50 | 60 => {
                let memory = frame_ring::memory()?;
                self.memory = memory.try_clone()?.into();
                drop(packet::send_now(vmm, &ToVmm::Network, &[memory.as_fd()]));
                self.link =
                    Link::from_parts(memory, Side::Network, self.bell.clone(), self.guest_bell.clone())?;
            }
            _ => {}
        }
        self.bell.answer();
        for _ in 0..AT_ONCE {
            let Ok(Some(len)) = self.link.receive(&mut self.buffer) else { break };
            // With too little room, or over a broken link, it is lost.
            let _ = self.buffer.get(..len).map(|frame| self.link.send(&[frame]));
        }
        Ok(())
    }
}
