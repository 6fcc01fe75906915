//! Time as the data plane counts it: milliseconds since the director's start.
//!
//! The machine's clock is `CLOCK_MONOTONIC`: setting the date does not move it, it never goes back, and while the machine
//! is suspended it stands still, and with it every timeout. Read once a burst by each worker, never per packet; costs one
//! `clock_gettime`, which is no system call on Linux. Should time jump all the same (a virtual machine restored), a
//! connection ends early or late by no more than that (`conn/wheel.rs`). A clock moved by hand takes its place in tests and in the lab, so that nothing there waits.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A point in time, in milliseconds since the clock's start. 48 bits of it are kept in a connection: 8,900 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The time from now until then; zero if then is past.
    pub fn until(self, then: Self) -> Duration {
        Duration::from_millis(then.0.saturating_sub(self.0))
    }
}

impl From<Duration> for Millis {
    /// The last point before so long after the clock's start.
    fn from(elapsed: Duration) -> Self {
        Self(elapsed.as_secs() * 1000 + u64::from(elapsed.subsec_millis()))
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    /// A point later by this much, to the millisecond above.
    fn add(self, later: Duration) -> Self {
        // Not by `as_nanos`, whose 128 bits are divided by a call; this runs once a packet.
        let millis = u64::from(later.subsec_nanos().div_ceil(1_000_000));
        Self(self.0.saturating_add(later.as_secs().saturating_mul(1000)).saturating_add(millis))
    }
}

/// Tells the time.
#[derive(Debug)]
pub enum Clock {
    /// The machine's `CLOCK_MONOTONIC`, which counts from this instant.
    Monotonic(Instant),
    /// Stands still unless moved. Its one writer is whoever moves it; it orders nothing but itself.
    ByHand(AtomicU64),
}

impl Clock {
    /// The machine's clock, starting now.
    pub fn monotonic() -> Self {
        Self::Monotonic(Instant::now())
    }

    /// A clock at 0 that stands still.
    pub fn by_hand() -> Self {
        Self::ByHand(AtomicU64::new(0))
    }

    /// What time it is.
    pub fn now(&self) -> Millis {
        self.elapsed().into()
    }

    /// The same to the nanosecond, for who measures how long something takes.
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::Monotonic(start) => start.elapsed(),
            Self::ByHand(millis) => Duration::from_millis(millis.load(Ordering::Relaxed)),
        }
    }

    /// Moves a clock that stands still.
    ///
    /// # Panics
    /// If it is the machine's: that one moves by itself.
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
