//! Why calls are in a table that a recorded run may not make. All but one name the case of `confined` that makes the call and
//! dies without its line.

use crate::table::Shown::{self, Argued, Case};

pub(super) const ABORT: Shown = Case(
    "abort",
    "a process that aborts (out of memory, a panic within a panic) ends with SIGABRT and its last words in the log",
);

pub(super) const RESTART: Shown = Case(
    "go_on_after_a_stop",
    "a wait with a timeout goes on by it after the process was stopped, as when a host is suspended",
);

pub(super) const CLOCK: Shown = Case(
    "look_at_the_clock",
    "made where the vDSO has no clock: on hosts without a stable time-stamp counter each look at the clock is one",
);

pub(super) const BRK: Shown = Case(
    "grow_the_heap",
    "the allocator's first arena grows by it, when the first thread needs more than it had before",
);

pub(super) const MREMAP: Shown = Case(
    "grow_a_buffer",
    "the allocator grows a buffer of more than 128 KiB by it: a long packet, a long line",
);

/// In the vmm of the KVM engine it is made at the first kick.
pub(super) const HANDLER: Shown = Case(
    "return_from_a_handler",
    "the return of a handler: KVM's kick of a vCPU, or a fault of translated code",
);

/// Most recorded runs have it.
pub(super) const SLEEP: Shown = Case(
    "sleep",
    "a machine that ends, or measures its clock, sleeps a moment if another thread is not there yet",
);

/// Most recorded runs have it.
pub(super) const YIELD: Shown =
    Case("yield", "a vCPU that waits for another one, as at a guest's PAUSE, lets it go first");

pub(super) const IPV6: Shown = Case(
    "make_every_socket",
    "a host without IPv6, or a name without such an address, leaves two of the four kinds unmade",
);

pub(super) const PUBLISHED: Shown =
    Case("serve_a_listener", "a sandbox that publishes a port takes its clients in; most publish none");

pub(super) const PIECES: Shown = Case(
    "send_in_pieces",
    "HTTP messages are written in pieces, head and body, where traffic is looked into",
);

pub(super) const NAMES: Shown = Case(
    "ask_for_addresses",
    "a published port's client is told apart by its address; a connection is logged with it",
);

pub(super) const MEMORY: Shown = Case(
    "hand_over_memory",
    "words of more than 128 KiB, such as all root certificates, go over in memory that is sealed",
);

pub(super) const RING: Shown =
    Case("make_a_ring", "a gateway that died is started again with empty memory for frames");

pub(super) const LIST: Shown = Case(
    "list_a_folder",
    "a sandbox with kits has a folder of their rules, which a change makes the shim read",
);

pub(super) const HUNG: Shown = Case(
    "kill_its_gateway",
    "a gateway that does not read its shim's words any more is ended, and another one started",
);

pub(super) const INTERNAL_ERROR: Shown =
    Argued("where KVM gives up on an instruction, the sentence that ends the machine says where it stood");

/// No release has the line.
#[cfg(debug_assertions)]
pub(super) const DEBUG: Shown = Case(
    "close_a_descriptor",
    "with debug assertions the standard library looks whether what it closes is open",
);
