//! The hold: the time for which the XDP program keeps frames for services from the kernel while no worker serves them.
//!
//! Workers store a beat into memory that the program reads, without a system call. While the last beat is younger than
//! the hold, the program drops steered frames that find no socket; afterwards the kernel gets them. Cost for a worker:
//! a comparison for each burst, and a store ten times a second. The program is `bpf/hold.h`.

use std::io;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xvs_xdp::bpf::{Object, Words};

use crate::bpf::{in_words, xvs_hold};

/// The name of the map.
pub(super) const MAP: &std::ffi::CStr = c"hold";

/// The shared state of the hold: one for all interfaces of the director.
#[derive(Debug)]
pub struct Hold(Words<WORDS>);

/// The number of words of the map's value, and the indices of some.
pub(super) const WORDS: usize = in_words(size_of::<xvs_hold>());
const BEAT: usize = in_words(offset_of!(xvs_hold, beat_ns));
const LENGTH: usize = in_words(offset_of!(xvs_hold, hold_ns));
pub(super) const DROPPED: usize = in_words(offset_of!(xvs_hold, dropped));

impl Hold {
    pub(super) fn of(object: &Object) -> io::Result<Self> {
        Ok(Self(object.words(MAP)?))
    }

    /// Sets the time that frames are held after the last beat, with `now` as the time of that beat. Zero: frames are
    /// never held.
    pub fn set(&self, length: Duration, now: Duration) {
        self.beat(now);
        self.word(LENGTH).store(nanos(length), Ordering::Relaxed);
    }

    /// The time that frames are held after the last beat.
    pub fn length(&self) -> Duration {
        Duration::from_nanos(self.word(LENGTH).load(Ordering::Relaxed))
    }

    /// Records that frames are served at this time of `CLOCK_MONOTONIC`.
    pub fn beat(&self, now: Duration) {
        // Relaxed, here and above: the words order no other memory, and a late one costs the program microseconds.
        self.word(BEAT).store(nanos(now), Ordering::Relaxed);
    }

    /// The number of frames that were held: dropped, because no worker served them.
    pub fn dropped(&self) -> u64 {
        self.word(DROPPED).load(Ordering::Relaxed)
    }

    /// Adds the frames that the program of an earlier process has held.
    pub(super) fn add_dropped(&self, frames: u64) {
        self.word(DROPPED).fetch_add(frames, Ordering::Relaxed);
    }

    fn word(&self, place: usize) -> &AtomicU64 {
        &self.0[place]
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// When a worker beats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beats {
    /// The time between two beats of a worker that is awake.
    pub(crate) interval: Duration,
    /// The longest sleep; `None`: no limit.
    pub(crate) sleep: Option<Duration>,
}

impl Beats {
    /// The beats without a hold.
    pub(crate) const NONE: Self = Self { interval: Duration::from_secs(1), sleep: None };

    /// The beats for this hold, so frequent that a late one does not end the hold.
    pub(crate) fn of(hold: Duration) -> Self {
        let [interval, sleep] =
            [(100, 8), (500, 4)].map(|(at_most, share)| Duration::from_millis(at_most).min(hold / share));
        Self { interval, sleep: Some(sleep) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_beats_at_least_once_a_second_and_several_times_in_a_short_hold() {
        for millis in [100, 500, 2000, 10_000, 3_600_000] {
            let hold = Duration::from_millis(millis);
            let Beats { interval, sleep } = Beats::of(hold);
            let sleep = sleep.unwrap();
            assert!(interval + sleep <= Duration::from_secs(1).min(hold / 2), "{millis}");
            assert!(sleep >= Duration::from_millis(25), "{millis}: an idle worker wakes too often");
        }
    }
}
