//! Any bytes as a packet between a shim and its gateway.

#[path = "packet_word.rs"]
mod packet_word;

use gateway::control::{FromGateway, ToGateway};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hear<T: Serialize + DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    packet_word::hear::<T>(
        bytes,
        |from| packet::receive_large(from),
        |to, word| packet::send_large_now(to, word, &[]),
    );
}

/// The first byte says which side hears.
pub(crate) fn run(data: &[u8]) {
    let Some((side, bytes)) = data.split_first() else { return };
    if side & 1 == 0 { hear::<ToGateway>(bytes) } else { hear::<FromGateway>(bytes) }
}
