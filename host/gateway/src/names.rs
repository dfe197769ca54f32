//! Synthetic addresses: one of IPv4 and one of IPv6 for each name that the guest asked for and may have.
//!
//! A flow's destination is therefore a name. Addresses are given out in order and stay with their name; only when
//! [`MOST`] names have one does a new name take over that of the name asked for longest ago which has no flows.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use agent_proto::abi::{SYNTHETIC_V4, SYNTHETIC_V6};
use policy::Name;
use serde::{Deserialize, Serialize};

/// Names that have addresses at one time. The pool of IPv4 would give four times as many; this bounds memory.
pub const MOST: u32 = 32_768;
/// The first four addresses of the pools are the link's.
const FIRST: u32 = 4;
/// How long the guest may keep an answer, in seconds.
pub(crate) const TTL: u32 = 60;
/// A name that was asked for within this time keeps its address.
const KEPT: Duration = Duration::from_secs(TTL as u64);

/// Which name has which synthetic address.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SavedNames {
    /// Names with the offset of their addresses in the pools, those asked for longest ago first.
    pub names: Vec<(Name, u32)>,
    /// The offset that comes next.
    pub next: u32,
}

#[derive(Debug)]
struct Entry {
    offset: u32,
    /// Its place in `order`.
    turn: u64,
    asked: Instant,
    flows: u32,
}

/// The names that have addresses.
#[derive(Debug)]
pub(crate) struct Names {
    by_name: HashMap<Name, Entry>,
    by_offset: HashMap<u32, Name>,
    /// Who was asked for longest ago comes first.
    order: BTreeMap<u64, u32>,
    turn: u64,
    next: u32,
    most: u32,
}

impl Default for Names {
    fn default() -> Self {
        Self::with_room_for(MOST)
    }
}

impl Names {
    fn with_room_for(most: u32) -> Self {
        let (by_name, by_offset, order) = Default::default();
        Self { by_name, by_offset, order, turn: 0, next: FIRST, most }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The addresses of a name, new ones if it has none. `None` when there are no more.
    pub(crate) fn ask(&mut self, name: &Name, now: Instant) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.turn = self.turn.wrapping_add(1);
        if let Some(entry) = self.by_name.get_mut(name) {
            self.order.remove(&entry.turn);
            self.order.insert(self.turn, entry.offset);
            entry.turn = self.turn;
            entry.asked = now;
            return Some(addresses(entry.offset));
        }
        let offset = if self.next < self.most.saturating_add(FIRST) {
            self.next = self.next.saturating_add(1);
            self.next.saturating_sub(1)
        } else {
            self.take_over(now)?
        };
        self.insert(name.clone(), offset, now);
        Some(addresses(offset))
    }

    fn insert(&mut self, name: Name, offset: u32, now: Instant) {
        self.order.insert(self.turn, offset);
        self.by_offset.insert(offset, name.clone());
        self.by_name.insert(name, Entry { offset, turn: self.turn, asked: now, flows: 0 });
    }

    /// Frees the address of the name asked for longest ago that needs it no more.
    fn take_over(&mut self, now: Instant) -> Option<u32> {
        // Those before it have flows, of which there are few.
        let (turn, offset) =
            self.order.iter().map(|(turn, offset)| (*turn, *offset)).find(|(_, offset)| {
                let entry = self.by_offset.get(offset).and_then(|name| self.by_name.get(name));
                entry.is_none_or(|entry| entry.flows == 0)
            })?;
        let entry = self.by_offset.get(&offset).and_then(|name| self.by_name.get(name));
        if entry.is_some_and(|entry| now.saturating_duration_since(entry.asked) < KEPT) {
            return None;
        }
        self.order.remove(&turn);
        if let Some(name) = self.by_offset.remove(&offset) {
            self.by_name.remove(&name);
        }
        Some(offset)
    }

    /// The name that an address stands for.
    pub(crate) fn name(&self, address: IpAddr) -> Option<&Name> {
        self.by_offset.get(&offset(address)?)
    }

    /// A flow to the name begins: it keeps its address.
    pub(crate) fn hold(&mut self, name: &Name) {
        if let Some(entry) = self.by_name.get_mut(name) {
            entry.flows = entry.flows.saturating_add(1);
        }
    }

    /// Such a flow is over.
    pub(crate) fn release(&mut self, name: &Name) {
        if let Some(entry) = self.by_name.get_mut(name) {
            entry.flows = entry.flows.saturating_sub(1);
        }
    }

    pub(crate) fn save(&self) -> SavedNames {
        let named = |offset: &u32| Some((self.by_offset.get(offset)?.clone(), *offset));
        SavedNames { names: self.order.values().filter_map(named).collect(), next: self.next }
    }

    /// The names of before. What cannot be (an address twice, or outside the pool) is left out.
    pub(crate) fn restore(saved: &SavedNames, now: Instant) -> Self {
        let mut names = Self::default();
        let end = names.most.saturating_add(FIRST);
        for (name, offset) in &saved.names {
            let usable = (FIRST..end).contains(offset);
            if usable && !names.by_offset.contains_key(offset) && !names.by_name.contains_key(name) {
                names.turn = names.turn.wrapping_add(1);
                names.insert(name.clone(), *offset, now);
                names.next = names.next.max(offset.saturating_add(1));
            }
        }
        names.next = names.next.max(saved.next.min(end));
        names
    }
}

/// Whether an address is of the pools or the link.
pub(crate) fn is_ours(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => within_v4(address).is_some(),
        IpAddr::V6(address) => within_v6(address).is_some(),
    }
}

fn within_v4(address: Ipv4Addr) -> Option<u32> {
    let size = 1u32.checked_shl(32u32.saturating_sub(u32::from(SYNTHETIC_V4.1)))?;
    u32::from(address).checked_sub(u32::from(SYNTHETIC_V4.0)).filter(|offset| *offset < size)
}

fn within_v6(address: Ipv6Addr) -> Option<u128> {
    let size = 1u128.checked_shl(128u32.saturating_sub(u32::from(SYNTHETIC_V6.1)))?;
    u128::from(address).checked_sub(u128::from(SYNTHETIC_V6.0)).filter(|offset| *offset < size)
}

fn offset(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(address) => within_v4(address),
        IpAddr::V6(address) => within_v6(address).and_then(|offset| u32::try_from(offset).ok()),
    }
}

fn addresses(offset: u32) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::from(u32::from(SYNTHETIC_V4.0).wrapping_add(offset)),
        Ipv6Addr::from(u128::from(SYNTHETIC_V6.0).wrapping_add(u128::from(offset))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn every_name_keeps_its_own_addresses() {
        let now = Instant::now();
        let mut names = Names::default();
        let a = names.ask(&name("a.example"), now).unwrap();
        let b = names.ask(&name("b.example"), now).unwrap();
        assert_eq!(a, ("198.18.0.4".parse().unwrap(), "fd76:6976::4".parse().unwrap()));
        assert_eq!(b, ("198.18.0.5".parse().unwrap(), "fd76:6976::5".parse().unwrap()));
        assert_eq!(names.ask(&name("a.example"), now), Some(a));
        for address in [IpAddr::from(a.0), a.1.into()] {
            assert_eq!(names.name(address), Some(&name("a.example")));
        }
        for address in
            ["198.18.0.1", "198.18.0.6", "198.17.255.255", "fd76:6976::1", "fd76:6976:0:1::4", "8.8.8.8"]
        {
            assert_eq!(names.name(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn a_full_pool_takes_the_one_asked_for_longest_ago_without_flows() {
        let start = Instant::now();
        let mut names = Names::with_room_for(3);
        let first = names.ask(&name("a.example"), start).unwrap();
        let second = names.ask(&name("b.example"), start).unwrap();
        names.ask(&name("c.example"), start).unwrap();
        names.hold(&name("a.example"));
        let soon = start + KEPT / 2;
        assert_eq!(names.ask(&name("d.example"), soon), None, "answers given out still hold");
        let later = start + KEPT;
        assert_eq!(names.ask(&name("d.example"), later), Some(second));
        assert_eq!(names.name(second.0.into()), Some(&name("d.example")));
        names.release(&name("a.example"));
        assert_eq!(names.ask(&name("e.example"), later), Some(first));
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn what_was_saved_is_there_again() {
        let now = Instant::now();
        let mut names = Names::default();
        for n in 0..10 {
            names.ask(&name(&format!("n{n}.example")), now).unwrap();
        }
        let saved = names.save();
        let again = Names::restore(&saved, now);
        assert_eq!(again.save(), saved);
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<SavedNames>(&text).unwrap(), saved);
    }

    #[test]
    fn nonsense_in_a_saved_state_is_left_out() {
        let names = vec![
            (name("a.example"), 4),
            (name("b.example"), 4),
            (name("a.example"), 5),
            (name("c.example"), 0),
            (name("d.example"), u32::MAX),
        ];
        let names = Names::restore(&SavedNames { names, next: u32::MAX }, Instant::now());
        assert_eq!(names.save(), SavedNames { names: vec![(name("a.example"), 4)], next: MOST + FIRST });
    }
}
