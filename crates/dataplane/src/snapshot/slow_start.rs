//! Slow start: a destination that accepts connections again gets a growing fraction of its share of the new ones.
//!
//! Used for each new connection to a service while one of its destinations starts slowly; it costs other services
//! nothing. Each new connection to the service earns such a destination the fraction of a connection that it should get
//! now. A destination that has earned a whole one may be chosen, and pays for it. Its share is therefore correct
//! whatever the scheduler compares, and whichever workers choose. `registry/slow_start.rs` in `ctl` decides which
//! destinations start slowly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Millis;

/// The slow start of one destination. A clone shares the credit.
#[derive(Debug, Clone)]
pub struct SlowStart {
    /// When it began.
    pub since: Millis,
    /// The duration of the slow start.
    pub length: Duration,
    /// The share of the service's new connections that the destination gets at the end, 0 to 1.
    pub full_share: f64,
    /// The earned and unused credit, in units of 2^-32 connections.
    credit: Arc<AtomicU64>,
}

impl SlowStart {
    /// A slow start without credit.
    pub fn new(since: Millis, length: Duration, full_share: f64) -> Self {
        Self { since, length, full_share, credit: Arc::default() }
    }

    /// The fraction of its full share that the destination gets now: a tenth at first, 1 at the end and later.
    pub fn part(&self, now: Millis) -> f64 {
        let elapsed = self.since.until(now).as_secs_f64() / self.length.as_secs_f64();
        (FIRST_PART + (1.0 - FIRST_PART) * elapsed).min(1.0)
    }

    /// [`Self::part`] in percent, rounded.
    pub fn percent(&self, now: Millis) -> u32 {
        (self.part(now) * 100.0).round() as u32
    }

    /// Whether it has ended.
    pub fn is_over(&self, now: Millis) -> bool {
        self.since.until(now) >= self.length
    }

    /// Whether the destination gets no new connection now.
    pub(super) fn waits(&self, turn: Turn) -> bool {
        !self.is_over(turn.now) && self.credit() < turn.price
    }

    /// The share of the service's new connections that the destination gets now, beside others that have started.
    pub(super) fn share(&self, now: Millis) -> f64 {
        self.full_share * self.part(now)
    }

    /// Earns this fraction of one new connection to the service.
    pub(super) fn earn(&self, part: f64) {
        let earned = (part * CONNECTION as f64) as u64;
        self.update(|credit| (credit + earned).min(CREDIT_MAX));
    }

    /// The earned and unused credit.
    pub(super) fn credit(&self) -> u64 {
        self.credit.load(Ordering::Relaxed)
    }

    /// Pays for the new connection that the destination gets.
    pub(super) fn pay(&self) {
        self.update(|credit| credit.saturating_sub(CONNECTION));
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // Relaxed: only the credit is shared here. The change is never refused.
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |credit| Some(change(credit)));
    }

    /// A slow start with equal values and separate credit.
    pub(super) fn separate_copy(&self) -> Self {
        Self { credit: Arc::new(AtomicU64::new(self.credit())), ..self.clone() }
    }
}

/// The slowly starting destinations that may be chosen for one connection.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) now: Millis,
    /// The credit that a destination needs.
    pub(super) price: u64,
}

/// The fraction of its full share that a destination gets at first.
const FIRST_PART: f64 = 0.1;
/// The credit that one connection costs.
pub(super) const CONNECTION: u64 = 1 << 32;
/// The maximum waiting credit, so that a destination whose turn comes late gets no burst.
const CREDIT_MAX: u64 = 2 * CONNECTION;
