//! Numbers of services and destinations that outlive snapshots.

use std::sync::atomic::{AtomicI32, Ordering};

use xvs_sched::Load;

use super::load::{Activity, LiveLoad};
use crate::counters::SharedStats;

/// Numbers of a service that outlive snapshots.
pub struct ServiceLive {
    /// Its counters.
    pub stats: SharedStats,
}

impl ServiceLive {
    /// Zeroes for this many workers.
    pub fn new(workers: usize) -> Self {
        Self { stats: SharedStats::new(workers) }
    }
}

/// Numbers of a destination that outlive snapshots.
pub struct DestinationLive {
    load: LiveLoad,
    templates: AtomicI32,
    /// Its counters.
    pub stats: SharedStats,
}

impl DestinationLive {
    /// Zeroes for this many workers.
    pub fn new(workers: usize) -> Self {
        let (load, templates) = Default::default();
        Self { load, templates, stats: SharedStats::new(workers) }
    }

    /// A copy that counts by itself.
    pub(super) fn separate_copy(&self) -> Self {
        Self {
            load: self.load.separate_copy(),
            templates: AtomicI32::new(self.templates.load(Ordering::Relaxed)),
            stats: SharedStats::new(1),
        }
    }

    /// Its connections now.
    pub fn load(&self) -> Load {
        let (active, inactive) = self.load.counts();
        Load { active, inactive }
    }

    /// Its templates now.
    pub fn templates(&self) -> u32 {
        // Two workers' additions and subtractions may be seen in either order, so the count can dip below zero for a
        // moment.
        u32::try_from(self.templates.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Counts a connection or template in, before anybody can find it.
    pub fn increment(&self, activity: Activity) {
        match activity {
            Activity::Template => _ = self.templates.fetch_add(1, Ordering::Relaxed),
            _ => self.load.increment(activity),
        }
    }

    /// A connection that was counted in is in the table: it may have reached the upper threshold.
    pub fn check_limit(&self) {
        self.load.check_limit();
    }

    /// Counts a connection or template out; also one that was counted in and did not come about.
    pub fn decrement(&self, activity: Activity) {
        match activity {
            Activity::Template => _ = self.templates.fetch_sub(1, Ordering::Relaxed),
            _ => self.load.decrement(activity),
        }
    }

    /// A connection that is counted has become active, or inactive, and was not before.
    pub fn move_to(&self, to: Activity) {
        self.load.move_to(to);
    }

    /// A connection came and went with its one packet. It may leave the destination overloaded.
    pub fn count_one_packet(&self) {
        if self.load.is_bounded() {
            self.increment(Activity::Inactive);
            self.check_limit();
            self.decrement(Activity::Inactive);
        }
    }

    /// Sets the thresholds, in connections, and judges by them at once. An upper one of 0 is none; a lower one of 0 is
    /// three quarters of the upper one.
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        self.load.set_bounds(upper, lower);
    }

    /// The upper threshold, in connections; 0: none.
    pub(super) fn upper_threshold(&self) -> u32 {
        self.load.upper()
    }

    /// Whether it takes no new connections, because it reached its upper threshold and has not come down below its
    /// lower one since. Source: ipvs-behaviour, section 7.
    pub fn is_overloaded(&self) -> bool {
        self.load.is_overloaded()
    }
}
