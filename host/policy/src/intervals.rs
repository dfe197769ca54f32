//! Sets of ports.

use crate::resource::Ports;

/// A set of ports: ranges that neither touch nor overlap, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    pub(crate) fn all() -> Self {
        Self(vec![(Ports::ALL.first(), Ports::ALL.last())])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, ports: Ports) {
        self.0.push((ports.first(), ports.last()));
        self.0.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0.drain(..) {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        self.0 = merged;
    }

    pub(crate) fn remove(&mut self, ports: Ports) {
        let (from, to) = (ports.first(), ports.last());
        self.0 = self
            .0
            .iter()
            .flat_map(|&(first, last)| {
                let below = (first < from).then(|| (first, last.min(from.saturating_sub(1))));
                let above = (last > to).then(|| (first.max(to.saturating_add(1)), last));
                [below, above]
            })
            .flatten()
            .collect();
    }

    pub(crate) fn minus(mut self, other: &Self) -> Self {
        for &(first, last) in &other.0 {
            self.remove(Ports::between(first, last));
        }
        self
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = Ports> {
        self.0.iter().map(|&(first, last)| Ports::between(first, last))
    }

    #[cfg(test)]
    fn touches(&self, ports: Ports) -> bool {
        self.0.iter().any(|&(first, last)| first <= ports.last() && ports.first() <= last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sets_of_ports_are_sets(steps in prop::collection::vec((any::<bool>(), 1u16..40, 0u16..12), 0..20)) {
            let mut set = PortSet::default();
            let mut model = BTreeSet::new();
            for (add, first, more) in steps {
                let ports = Ports::between(first, first + more);
                if add {
                    set.add(ports);
                    model.extend(first..=first + more);
                } else {
                    set.remove(ports);
                    model.retain(|port| !ports.contains(*port));
                }
                for port in 1..60 {
                    prop_assert_eq!(set.touches(Ports::between(port, port)), model.contains(&port));
                }
                prop_assert_eq!(set.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_hold() {
        let mut set = PortSet::all();
        set.remove(Ports::between(1, 1));
        set.remove(Ports::between(65535, 65535));
        assert!(set.touches(Ports::between(2, 2)) && !set.touches(Ports::between(65535, 65535)));
        set.add(Ports::ALL);
        assert_eq!(set, PortSet::all());
        assert!(PortSet::all().minus(&PortSet::all()).is_empty());
    }
}
