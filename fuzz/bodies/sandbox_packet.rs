//! Any bytes as a packet between the processes of a sandbox: from a client to its shim, between shim and vmm.

#[path = "packet_word.rs"]
mod packet_word;

use sandbox::control::{Reply, Request};
use sandbox::packet;
use sandbox::plan::{FromVmm, ToVmm};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hear<T: Serialize + DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    packet_word::hear::<T>(bytes, |from| packet::receive(from), |to, word| packet::send_now(to, word, &[]));
}

/// The first byte says which kind is expected.
pub(crate) fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind & 3 {
        0 => hear::<Request>(bytes),
        1 => hear::<Reply>(bytes),
        2 => hear::<FromVmm>(bytes),
        _ => hear::<ToVmm>(bytes),
    }
}
