//! The clock of the data plane: milliseconds since the machine's start.
//!
//! The machine's clock is `CLOCK_MONOTONIC`: setting the date does not change it, and it never goes back. All processes
//! share it, so deadlines in memory that outlives a process stay valid. The clock and all timeouts stop while the
//! machine is suspended. Each worker reads the clock once for each burst, never for a packet. A reading costs one
//! `clock_gettime`, which is not a system call on Linux. If the time still jumps (a virtual machine was restored), a
//! connection ends early or late by no more than that (`conn/wheel.rs`). Tests and the lab advance their clock
//! themselves, so they never wait.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in time, in milliseconds since the start of the clock. A connection stores 48 bits of it: 8,900 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The time from now until then; zero if then is in the past.
    pub fn until(self, then: Self) -> Duration {
        Duration::from_millis(then.0.saturating_sub(self.0))
    }
}

impl From<Duration> for Millis {
    /// Rounds the time since the start of the clock down to a millisecond.
    fn from(elapsed: Duration) -> Self {
        Self(elapsed.as_secs() * 1000 + u64::from(elapsed.subsec_millis()))
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    /// The point in time this much later, rounded up to a millisecond.
    fn add(self, later: Duration) -> Self {
        // `as_nanos` would need a 128-bit division, which is a function call; this runs for each packet.
        let millis = u64::from(later.subsec_nanos().div_ceil(1_000_000));
        Self(self.0.saturating_add(later.as_secs().saturating_mul(1000)).saturating_add(millis))
    }
}

/// A point in time, in microseconds since the start of the clock: for measuring durations shorter than [`Millis`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Micros(pub u64);

impl From<Duration> for Micros {
    /// Rounds the time since the start of the clock down to a microsecond.
    fn from(elapsed: Duration) -> Self {
        Self(elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros()))
    }
}

impl From<Millis> for Micros {
    fn from(millis: Millis) -> Self {
        Self(millis.0 * 1000)
    }
}

/// A clock.
#[derive(Debug)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// A clock that stands still unless it is advanced. One thread advances it; its value orders no other memory.
    ByHand(AtomicU64),
}

impl Clock {
    /// A clock at 0 that stands still until [`Self::advance`].
    pub fn by_hand() -> Self {
        Self::ByHand(AtomicU64::new(0))
    }

    /// The time.
    pub fn now(&self) -> Millis {
        self.elapsed().into()
    }

    /// The time in nanoseconds, for measuring durations.
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::Monotonic => {
                let time = clock_gettime(ClockId::Monotonic);
                // Neither is ever negative (clock_gettime(2)).
                Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
            }
            Self::ByHand(millis) => Duration::from_millis(millis.load(Ordering::Relaxed)),
        }
    }

    /// Advances a clock that stands still.
    ///
    /// # Panics
    ///
    /// If it is the machine's clock.
    pub fn advance(&self, by: Duration) {
        let Self::ByHand(millis) = self else { panic!("only a clock moved by hand can be moved") };
        millis.store((self.now() + by).0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_moved_by_hand_stands_still_until_moved() {
        let clock = Clock::by_hand();
        assert_eq!((clock.now(), clock.now()), (Millis(0), Millis(0)));
        clock.advance(Duration::from_millis(2500));
        assert_eq!(clock.now(), Millis(2500));
        assert_eq!(Millis::from(Duration::new(2, 500_999_999)), clock.now());
    }

    #[test]
    fn adding_rounds_up_and_the_past_is_no_time_away() {
        assert_eq!(Millis(5) + Duration::from_micros(1001), Millis(7));
        assert_eq!(Millis(5) + Duration::new(2, 999_999_999), Millis(3005));
        assert_eq!(Millis(5) + Duration::MAX, Millis(u64::MAX));
        assert_eq!(Millis(5).until(Millis(8)), Duration::from_millis(3));
        assert_eq!(Millis(8).until(Millis(5)), Duration::ZERO);
    }
}
