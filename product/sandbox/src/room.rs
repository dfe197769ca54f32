//! Room on the host's disk, as far as a running sandbox needs it: what is told of it to whom, and when a start gives up for it.
//!
//! The vmm says again and again that a write waits, four times a second, and nothing when it waits no more. So a word that is lost does
//! no harm, and a host that has room now and then, or a guest that plays with its last blocks, cannot flood anybody's terminal: there is
//! room when nothing was heard for a while, and a want is told once a minute at most.

use std::time::{Duration, Instant};

use crate::control::Notice;

/// There is room again when no write was heard to wait for so long.
const QUIET: Duration = Duration::from_secs(3);

/// Between two notices that the disk is full.
const PAUSE: Duration = Duration::from_secs(60);

/// How long a start waits for room, all in all. Nothing is lost when it is given up.
const START: Duration = Duration::from_secs(10);

/// Why a start was given up.
pub(crate) const NO_ROOM_TO_START: &str = "the host's disk is full";

/// What is known of the room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// When a write began to wait, and when one was last heard to; without pauses of [`QUIET`] between.
    waits: Option<(Instant, Instant)>,
    /// When sessions were last told that the disk is full, whether that still holds or not.
    told: Option<Instant>,
    /// Whether what they were told last is that.
    is_full: bool,
}

impl Room {
    /// A write waits. Gives what is to be told now.
    pub(crate) fn hear(&mut self, now: Instant) -> Option<Notice> {
        let began = self.waits.filter(|(_, last)| now < *last + QUIET).map_or(now, |(began, _)| began);
        self.waits = Some((began, now));
        if self.is_full || self.told.is_some_and(|told| now < told + PAUSE) {
            return None;
        }
        (self.is_full, self.told) = (true, Some(now));
        Some(Notice::HostFull)
    }

    /// What is to be told as time goes by.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Notice> {
        if self.next().is_none_or(|at| now < at) {
            return None;
        }
        self.waits = None;
        std::mem::take(&mut self.is_full).then_some(Notice::HostHasRoom)
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waits.map(|(_, last)| last + QUIET)
    }

    /// What a session that begins is to be told.
    pub(crate) fn notice(&self) -> Option<Notice> {
        self.is_full.then_some(Notice::HostFull)
    }

    /// Whether a write waits, as far as is known.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waits.is_some()
    }

    /// Whether a start has waited long enough.
    pub(crate) fn is_too_full_to_start(&self, now: Instant) -> bool {
        self.waits.is_some_and(|(began, last)| now < last + QUIET && now >= began + START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(250);

    /// Plays `seconds`, in which a write is heard to wait whenever `waits` says so; gives what was told, and when.
    fn play(seconds: u32, waits: impl Fn(Duration) -> bool) -> Vec<(u64, Notice)> {
        let (start, mut room, mut told) = (Instant::now(), Room::default(), Vec::new());
        for step in 0..seconds * 4 {
            let at = STEP * step;
            let notice = if waits(at) { room.hear(start + at) } else { room.due(start + at) };
            told.extend(notice.map(|notice| (at.as_secs(), notice)));
        }
        told
    }

    #[test]
    fn a_want_is_told_once_and_its_end_once() {
        let told = play(300, |at| (10..200).contains(&at.as_secs()));
        assert_eq!(told, [(10, Notice::HostFull), (202, Notice::HostHasRoom)]);
    }

    #[test]
    fn a_host_that_has_room_now_and_then_floods_nobody() {
        // Every other word, then with pauses that are as good as room.
        let told = play(120, |at| at.as_millis() % 500 == 0);
        assert_eq!(told, [(0, Notice::HostFull)]);
        let told = play(600, |at| at.as_secs() % 10 < 2);
        assert!(told.len() <= 20, "a pair a minute: {told:?}");
        assert!(told.windows(2).all(|pair| pair[0].1 != pair[1].1), "{told:?}");
    }

    #[test]
    fn a_want_that_was_not_told_at_once_is_told_when_it_lasts() {
        let told = play(100, |at| at.as_secs() < 2 || at.as_secs() >= 20);
        assert_eq!(told, [(0, Notice::HostFull), (4, Notice::HostHasRoom), (60, Notice::HostFull)]);
    }

    #[test]
    fn who_comes_later_hears_of_it_too_and_a_lost_word_does_not_stick() {
        let (start, mut room) = (Instant::now(), Room::default());
        assert_eq!(room.notice(), None);
        room.hear(start);
        assert_eq!((room.notice(), room.is_waited_for()), (Some(Notice::HostFull), true));
        // No word that it is over ever comes.
        assert_eq!(room.due(start + QUIET), Some(Notice::HostHasRoom));
        assert_eq!((room.notice(), room.next(), room.is_waited_for()), (None, None, false));
    }

    #[test]
    fn a_start_gives_up_when_it_has_waited_for_long_and_still_does() {
        let (start, mut room) = (Instant::now(), Room::default());
        let mut at = start;
        while at < start + START {
            assert!(!room.is_too_full_to_start(at));
            room.hear(at);
            at += STEP;
        }
        assert!(room.is_too_full_to_start(start + START));
        assert!(!room.is_too_full_to_start(start + START + QUIET), "there is room by now");
        // A pause begins anew.
        room.hear(start + START + QUIET);
        assert!(!room.is_too_full_to_start(start + START + QUIET));
    }
}
