//! The guest's network card and its link to the process that is its network.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agent_proto::abi::{GUEST_MAC, LINK_MTU};
use doorbell::Doorbell;
use virtio_devices::{Net, NetHost};

use crate::engine::sentence;
use crate::packet;
use crate::plan::{self, FromVmm, Received};

/// What connects the card, again when the network was started again.
pub(super) struct Network {
    card: NetHost,
    bell: Doorbell,
    far_bell: Doorbell,
}

impl Network {
    /// The card of a plan, and its first link.
    pub(super) fn new(
        plan: &plan::Network,
        received: &mut Received,
        control: Arc<OwnedFd>,
    ) -> Result<(Net, Self), String> {
        let mut take = |slot| super::build::take(received, slot);
        let (memory, bell, far_bell) = (take(plan.memory)?, take(plan.bell)?, take(plan.far_bell)?);
        let bell = crate::sys::doorbell(bell).map_err(|error| sentence(&error))?;
        let far_bell = crate::sys::doorbell(far_bell).map_err(|error| sentence(&error))?;
        let tell = move || {
            let _ = packet::send(&*control, &FromVmm::NetworkBroken, &[]);
        };
        let (device, card) = Net::new(GUEST_MAC, LINK_MTU, bell.clone(), tell);
        let network = Self { card, bell, far_bell };
        network.connect(memory)?;
        Ok((device, network))
    }

    /// Plugs the card into the link of this memory.
    pub(super) fn connect(&self, memory: OwnedFd) -> Result<(), String> {
        let link = crate::sys::guest_link(memory, self.bell.clone(), self.far_bell.clone());
        self.card.connect(link.map_err(|error| sentence(&error))?);
        Ok(())
    }

    /// The network is gone, and the guest's carrier with it.
    pub(super) fn disconnect(&self) {
        self.card.disconnect();
    }
}
