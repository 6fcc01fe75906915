//! The timer links of one worker: the connections to process, and the tick of each.
//!
//! A hashed timer wheel: a tick is an eighth of a second, a turn 64 seconds. A link with a later deadline is due within
//! 64 seconds, too, and is then linked again. Each connection is therefore processed once in that time, and an invalid
//! link lasts no longer. There is one node for each entry, doubly linked by indices: nothing is allocated after the
//! start, nothing overflows, and linking an entry again removes its old link. All links in a list have the same tick,
//! so a node does not store it. Nodes are touched when first used. Linking and removing cost a few instructions; an
//! empty tick costs one. If time goes back, existing links keep their tick, and links created in the meantime are due
//! at the latest when time has caught up. `handle.rs` determines whether a link is still valid.

use std::time::Duration;

use crate::clock::Millis;

/// A link that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    /// The tick that it was linked for.
    pub(super) tick: u32,
}

/// The links of one worker; no other thread accesses them.
#[derive(Debug, Default)]
pub(super) struct Wheel {
    /// One node for each slab entry: next and previous node of its list, each as index plus one. The first node of a
    /// list has [`FIRST`] and the slot as its previous node; a node that is not linked has 0. They are plain integers,
    /// so zeroed memory comes from the kernel untouched.
    nodes: Vec<[u32; 2]>,
    /// The first node of each tick's list, as index plus one.
    heads: Vec<u32>,
    /// The lists of all earlier ticks are empty.
    cursor: u32,
    /// The number of linked nodes.
    linked: u32,
}

impl Wheel {
    /// The memory for each entry that was ever linked, in bytes.
    pub(super) const ENTRY_BYTES: usize = size_of::<[u32; 2]>();

    /// A wheel for this number of entries.
    pub(super) fn new(entries: usize) -> Self {
        Self { nodes: vec![[0; 2]; entries], heads: vec![0; SLOTS as usize], cursor: 0, linked: 0 }
    }

    /// The tick for a connection with this deadline: the first at or after it, but at least the next one and at most
    /// the last of the wheel.
    pub(super) fn tick_for(&self, deadline: Millis) -> u32 {
        tick_at_or_after(deadline).clamp(self.cursor + 1, self.cursor + SLOTS - 1)
    }

    /// Links an entry for a tick that [`tick_for`](Self::tick_for) has returned since the last [`pop`](Self::pop). The
    /// entry's old link in this wheel is removed.
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

    /// Removes and returns a link that is due at `now`, earliest tick first; `None` if there is none.
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

    /// The time when the earliest link is due.
    pub(super) fn next_due(&self) -> Option<Millis> {
        let end = self.cursor + if self.linked == 0 { 0 } else { SLOTS };
        (self.cursor..end)
            .find(|tick| self.heads[(tick % SLOTS) as usize] != 0)
            .map(|tick| Millis(u64::from(tick) * TICK_MILLIS))
    }

    /// Removes an entry's link, if it has one in this wheel.
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

/// The tick of the wheel. A connection expires at its deadline or at most this time after it, never before.
pub const TIMER_TICK: Duration = Duration::from_millis(TICK_MILLIS);
const TICK_MILLIS: u64 = 125;
/// The number of ticks in a turn.
const SLOTS: u32 = 512;
/// The last tick, 17 years after the start: a turn less than the range of 32 bits.
const TICK_MAX: u64 = (u32::MAX - SLOTS) as u64;
/// The indices of a node's integers.
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
        assert_eq!(due(&mut wheel, 999), [0; 0]);
        assert_eq!(due(&mut wheel, 1000), [0]);
        assert_eq!(due(&mut wheel, 1124), [0; 0]);
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
    fn after_a_long_pause_links_are_due_in_order_and_an_empty_wheel_catches_up_at_once() {
        let mut wheel = Wheel::new(3);
        link(&mut wheel, 0, 30_000);
        link(&mut wheel, 1, 10_000);
        link(&mut wheel, 2, 60_000);
        assert_eq!(due(&mut wheel, 86_400_000), [1, 0, 2]);
        assert_eq!(link(&mut wheel, 0, 0), 86_400_000 / 125 + 1);
    }
}
