//! Timer links of one worker: which connections to look at, and at which tick.
//!
//! A hashed wheel of ticks of an eighth of a second, 64 seconds round. A link whose deadline is farther away is due
//! within 64 seconds all the same and put back then: each connection is looked at once in that time, and a link that
//! no longer counts keeps nothing for longer. There is one node for each entry, linked both ways through indices:
//! nothing is allocated after the start, nothing overflows, and linking an entry anew takes its old link out. A list
//! holds links of one tick, so a node need not say which. Nodes are touched when first used. Linking and taking cost
//! a few instructions; an empty tick costs one. When time goes back, what was linked keeps its tick, and what is linked
//! meanwhile is due at the latest when time has caught up. Not here: whether a link still counts (`handle.rs`).

use std::time::Duration;

use crate::clock::Millis;

/// A link that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    /// The tick that it was linked for.
    pub(super) tick: u32,
}

/// The links of one worker; nobody else touches them.
#[derive(Debug, Default)]
pub(super) struct Wheel {
    /// One a slab entry, of plain integers so that zeroed memory is had from the kernel untouched: next and previous
    /// of its list as index plus one. Of a list's first, the previous is [`FIRST`] and the slot; of an entry that is
    /// not linked, 0.
    nodes: Vec<[u32; 2]>,
    /// First node of each tick's list, as index plus one.
    heads: Vec<u32>,
    /// Every earlier tick's list is empty.
    cursor: u32,
    /// How many nodes are linked.
    linked: u32,
}

impl Wheel {
    /// Memory for each entry that was ever linked, in bytes.
    pub(super) const ENTRY_BYTES: usize = size_of::<[u32; 2]>();

    /// A wheel for so many entries.
    pub(super) fn new(entries: usize) -> Self {
        Self { nodes: vec![[0; 2]; entries], heads: vec![0; SLOTS as usize], cursor: 0, linked: 0 }
    }

    /// The tick for which a connection with this deadline is to be linked: the first at or after it, but the next at
    /// least and the wheel's last at most.
    pub(super) fn tick_for(&self, deadline: Millis) -> u32 {
        tick_at_or_after(deadline).clamp(self.cursor + 1, self.cursor + SLOTS - 1)
    }

    /// Links an entry for a tick that [`tick_for`](Self::tick_for) gave since the last [`pop`](Self::pop), in
    /// place of its old link in this wheel.
    pub(super) fn link(&mut self, link: Link) {
        debug_assert!((self.cursor + 1..self.cursor + SLOTS).contains(&link.tick));
        self.unlink(link.index);
        let slot = link.tick % SLOTS;
        let next = std::mem::replace(&mut self.heads[slot as usize], link.index + 1);
        if let Some(next) = next.checked_sub(1) {
            self.nodes[next as usize][PREVIOUS] = link.index + 1;
        }
        self.nodes[link.index as usize] = [next, FIRST | slot];
        self.linked += 1;
    }

    /// Takes out a link that is due at `now`, earliest tick first; `None` when there is no other.
    pub(super) fn pop(&mut self, now: Millis) -> Option<Link> {
        let now = (now.0 / TICK_MILLIS).min(TICK_MAX) as u32;
        loop {
            if let Some(index) = self.heads[(self.cursor % SLOTS) as usize].checked_sub(1) {
                self.unlink(index);
                return Some(Link { index, tick: self.cursor });
            }
            if self.cursor >= now {
                return None;
            }
            self.cursor = if self.linked == 0 { now } else { self.cursor + 1 };
        }
    }

    /// When the earliest link is due.
    pub(super) fn next_due(&self) -> Option<Millis> {
        let ticks = self.cursor..self.cursor + if self.linked == 0 { 0 } else { SLOTS };
        let first = ticks.into_iter().find(|tick| self.heads[(tick % SLOTS) as usize] != 0);
        first.map(|tick| Millis(u64::from(tick) * TICK_MILLIS))
    }

    /// Takes an entry's link out, if it has one in this wheel.
    pub(super) fn unlink(&mut self, index: u32) {
        let [next, previous] = self.nodes[index as usize];
        match previous {
            0 => return,
            first if first & FIRST != 0 => self.heads[(first & !FIRST) as usize] = next,
            previous => self.nodes[previous as usize - 1][NEXT] = next,
        }
        if let Some(next) = next.checked_sub(1) {
            self.nodes[next as usize][PREVIOUS] = previous;
        }
        self.nodes[index as usize] = [0; 2];
        self.linked -= 1;
    }
}

/// The first tick at or after a deadline.
pub(super) fn tick_at_or_after(deadline: Millis) -> u32 {
    deadline.0.div_ceil(TICK_MILLIS).min(TICK_MAX) as u32
}

/// The wheel's step: no deadline is met early, and none later than this after it.
pub const TIMER_TICK: Duration = Duration::from_millis(TICK_MILLIS);
const TICK_MILLIS: u64 = 125;
/// Ticks of one turn.
const SLOTS: u32 = 512;
/// Where ticks end, 17 years after the start: a turn less than 32 bits hold.
const TICK_MAX: u64 = (u32::MAX - SLOTS) as u64;
/// Words of a node.
const NEXT: usize = 0;
const PREVIOUS: usize = 1;
/// Greater than every index plus one.
const FIRST: u32 = 1 << 31;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn link(wheel: &mut Wheel, index: u32, deadline: u64) -> u32 {
        let tick = wheel.tick_for(Millis(deadline));
        wheel.link(Link { index, tick });
        tick
    }

    fn due(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop(Millis(now))).map(|link| link.index).collect()
    }

    #[test]
    fn a_link_is_due_at_the_first_tick_not_before_its_deadline() {
        let mut wheel = Wheel::new(4);
        link(&mut wheel, 0, 1000);
        link(&mut wheel, 1, 1001);
        assert_eq!(due(&mut wheel, 999), []);
        assert_eq!(due(&mut wheel, 1000), [0]);
        assert_eq!(due(&mut wheel, 1124), []);
        assert_eq!(due(&mut wheel, 1125), [1]);
    }

    #[test]
    fn a_far_deadline_is_due_within_a_turn_and_can_be_put_back() {
        let mut wheel = Wheel::new(1);
        let tick = link(&mut wheel, 0, 900_000);
        assert_eq!(tick, SLOTS - 1);
        assert_eq!(wheel.next_due(), Some(Millis(63_875)));
        assert_eq!(due(&mut wheel, 63_875), [0]);
        assert_eq!(link(&mut wheel, 0, 900_000), 2 * (SLOTS - 1));
    }

    #[test]
    fn linking_anew_replaces_the_old_link_wherever_it_stands_in_its_list() {
        for moved in 0..3 {
            let mut wheel = Wheel::new(3);
            (0..3).for_each(|index| {
                link(&mut wheel, index, 1000);
            });
            link(&mut wheel, moved, 500);
            assert_eq!(due(&mut wheel, 500), [moved]);
            assert_eq!(due(&mut wheel, 10_000).len(), 2);
            assert_eq!((wheel.linked, wheel.next_due()), (0, None));
        }
    }

    #[test]
    fn after_a_long_absence_links_are_due_in_their_order_and_an_empty_wheel_catches_up_at_once() {
        let mut wheel = Wheel::new(3);
        link(&mut wheel, 0, 30_000);
        link(&mut wheel, 1, 10_000);
        link(&mut wheel, 2, 60_000);
        assert_eq!(due(&mut wheel, 86_400_000), [1, 0, 2]);
        assert_eq!(link(&mut wheel, 0, 0), 86_400_000 / 125 + 1);
    }
}
