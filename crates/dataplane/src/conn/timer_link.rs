//! The link of a connection's deadline in a wheel.
//!
//! One link of a connection is valid: the one at the tick in the entry's `timer`, in the wheel of any worker. A thread
//! that sets `timer` makes this link; every other link is discarded when it is due.

use super::wheel::{Link, Wheel, tick_at_or_after};
use crate::clock::Millis;
use crate::shm::atomic::{Ordering, fence};
use crate::shm::layout::Entry;

/// Links a due entry again. If its deadline has passed, the link is a tick later and the result is `true`. An invalid
/// link is discarded.
///
/// The entry may now contain another connection, whose valid link is in some wheel at the tick in `timer`. If this link
/// has the same tick, it becomes the valid one and the other is discarded. Each connection is therefore always
/// processed in time.
pub(super) fn put_back(wheel: &mut Wheel, entry: &Entry, due: Link) -> bool {
    let life = entry.life();
    if !life.is_current() {
        return false;
    }
    let has_come = tick_at_or_after(life.deadline()) <= due.tick;
    // A connection that is being inserted cannot be removed yet. A live one stays readable during this burst.
    link_anew(wheel, entry, due.index, due.tick, life.deadline()) && has_come && life.is_live()
}

/// Links an entry for its deadline, if its tick is still `old`.
pub(super) fn link_anew(wheel: &mut Wheel, entry: &Entry, index: u32, old: u32, deadline: Millis) -> bool {
    let tick = wheel.tick_for(deadline);
    // Relaxed, like all accesses to `timer`: the fences here and in `transition` provide the necessary ordering.
    if entry.timer.compare_exchange(old, tick, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return false;
    }
    wheel.link(Link { index, tick });
    // See `transition`. A deadline that was brought forward while the entry was being linked is seen here.
    fence(Ordering::SeqCst);
    let life = entry.life();
    if life.is_current() {
        bring_forward(wheel, index, entry, life.deadline());
    }
    true
}

/// Links an entry in this wheel if its valid link is due too late.
pub(super) fn bring_forward(wheel: &mut Wheel, index: u32, entry: &Entry, deadline: Millis) {
    let tick = wheel.tick_for(deadline);
    let brought = entry
        .timer
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |linked| (linked > tick).then_some(tick));
    if brought.is_ok() {
        wheel.link(Link { index, tick });
    }
}
