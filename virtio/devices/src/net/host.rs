//! The host's handle to a network card.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backends::FrameLink;
use doorbell::Doorbell;

/// What the host wants of the card.
pub(super) enum Change {
    Connect(Box<dyn FrameLink>),
    Disconnect,
}

pub(super) struct Inbox {
    change: Mutex<Option<Change>>,
    bell: Doorbell,
}

impl Inbox {
    pub(super) fn new(bell: Doorbell) -> Self {
        Self { change: Mutex::new(None), bell }
    }

    pub(super) fn bell(&self) -> &Doorbell {
        &self.bell
    }

    pub(super) fn take(&self) -> Option<Change> {
        self.locked().take()
    }

    fn put(&self, change: Change) {
        *self.locked() = Some(change);
        self.bell.ring();
    }

    fn locked(&self) -> MutexGuard<'_, Option<Change>> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a card its link. Clones belong to the same card.
#[derive(Clone)]
pub struct NetHost(pub(super) Arc<Inbox>);

impl NetHost {
    /// Plugs the card into a link, instead of the one that it has. The link rings the bell that the card was made with.
    pub fn connect(&self, link: Box<dyn FrameLink>) {
        self.0.put(Change::Connect(link));
    }

    /// Unplugs it: the driver sees no carrier.
    pub fn disconnect(&self) {
        self.0.put(Change::Disconnect);
    }
}

impl std::fmt::Debug for NetHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetHost").finish_non_exhaustive()
    }
}
