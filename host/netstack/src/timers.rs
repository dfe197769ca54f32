//! When flows want to be looked at again. Deadlines mostly move away (each acknowledgement restarts the retransmission timer),
//! so a queue entry stays where it is until it is reached or asked for, and is put right then.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::event::FlowId;

/// A flow's own part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timer {
    /// When it wants to be looked at.
    due: Option<Duration>,
    /// Its entry in the queue: not later than `due`.
    queued: Option<Duration>,
}

/// Where the flows' parts are.
pub(crate) trait TimerParts {
    /// The part of a flow, if it is there.
    fn timer(&mut self, flow: FlowId) -> Option<&mut Timer>;
}

/// All flows' deadlines.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BinaryHeap<Reverse<(Duration, FlowId)>>,
}

impl Timers {
    /// Sets or clears a flow's deadline.
    pub(crate) fn set(&mut self, flow: FlowId, timer: &mut Timer, due: Option<Duration>) {
        timer.due = due;
        if let Some(due) = due
            && timer.queued.is_none_or(|queued| due < queued)
        {
            timer.queued = Some(due);
            self.queue.push(Reverse((due, flow)));
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&mut self, parts: &mut impl TimerParts) -> Option<Duration> {
        while let Some(&Reverse((at, flow))) = self.queue.peek() {
            match parts.timer(flow).filter(|timer| timer.queued == Some(at)) {
                Some(timer) if timer.due == Some(at) => return Some(at),
                Some(timer) => {
                    self.queue.pop();
                    timer.queued = None;
                    let due = timer.due;
                    self.set(flow, timer, due);
                }
                None => {
                    self.queue.pop();
                }
            }
        }
        None
    }

    /// A flow whose deadline has come; its deadline is cleared.
    pub(crate) fn expired(&mut self, now: Duration, parts: &mut impl TimerParts) -> Option<FlowId> {
        // Entries that lie in the future stay as they are: an idle call costs nothing.
        while self.queue.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Reverse((at, flow)) = self.queue.pop()?;
            let Some(timer) = parts.timer(flow).filter(|timer| timer.queued == Some(at)) else { continue };
            timer.queued = None;
            match timer.due {
                Some(due) if due <= now => {
                    timer.due = None;
                    return Some(flow);
                }
                due => self.set(flow, timer, due),
            }
        }
        None
    }

    /// Drops entries of no use if they have become many.
    pub(crate) fn tidy(&mut self, flows: usize, parts: &mut impl TimerParts) {
        if self.queue.len() > flows.saturating_mul(4).saturating_add(64) {
            self.queue.retain(|Reverse((at, flow))| {
                parts.timer(*flow).is_some_and(|timer| timer.queued == Some(*at))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl TimerParts for HashMap<FlowId, Timer> {
        fn timer(&mut self, flow: FlowId) -> Option<&mut Timer> {
            self.get_mut(&flow)
        }
    }

    proptest! {
        /// As a plain map of deadlines would have it.
        #[test]
        fn deadlines_are_kept(
            steps in proptest::collection::vec((0u64..6, proptest::option::of(0u64..50), 0u64..6, any::<bool>()), 1..200)
        ) {
            let mut timers = Timers::default();
            let mut parts: HashMap<FlowId, Timer> = HashMap::new();
            let mut model: HashMap<FlowId, Duration> = HashMap::new();
            let mut now = Duration::ZERO;
            for (flow, due, pass, look) in steps {
                let flow = FlowId(flow);
                let due = due.map(|due| now + Duration::from_secs(due));
                timers.set(flow, parts.entry(flow).or_default(), due);
                match due {
                    Some(due) => model.insert(flow, due),
                    None => model.remove(&flow),
                };
                if look {
                    prop_assert_eq!(timers.next(&mut parts), model.values().min().copied());
                }
                timers.tidy(0, &mut parts);
                now += Duration::from_secs(pass);
                while let Some(flow) = timers.expired(now, &mut parts) {
                    prop_assert!(model.remove(&flow).is_some_and(|due| due <= now));
                }
                prop_assert!(model.values().all(|due| *due > now));
            }
        }
    }

    #[test]
    fn stale_entries_do_not_pile_up() {
        let mut timers = Timers::default();
        let mut parts = HashMap::from([(FlowId(0), Timer::default())]);
        for at in (0..10_000).rev() {
            timers.set(FlowId(0), parts.get_mut(&FlowId(0)).unwrap(), Some(Duration::from_secs(at)));
            timers.tidy(1, &mut parts);
        }
        assert!(timers.queue.len() <= 68);
        assert_eq!(timers.next(&mut parts), Some(Duration::ZERO));
    }
}
