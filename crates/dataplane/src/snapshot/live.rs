//! Numbers of services and destinations that outlive snapshots.

use std::sync::atomic::{AtomicI32, Ordering};

use xvs_sched::Load;

use super::load::{Activity, Occupancy};
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
    occupancy: Occupancy,
    templates: AtomicI32,
    /// Its counters.
    pub stats: SharedStats,
}

impl DestinationLive {
    /// Zeroes for this many workers.
    pub fn new(workers: usize) -> Self {
        let (occupancy, templates) = Default::default();
        Self { occupancy, templates, stats: SharedStats::new(workers) }
    }

    /// A copy that counts by itself.
    pub(super) fn apart(&self) -> Self {
        Self {
            occupancy: self.occupancy.apart(),
            templates: AtomicI32::new(self.templates.load(Ordering::Relaxed)),
            stats: SharedStats::new(1),
        }
    }

    /// Its connections now.
    pub fn load(&self) -> Load {
        let (active, inactive) = self.occupancy.counts();
        Load { active, inactive }
    }

    /// Its templates now.
    pub fn templates(&self) -> u32 {
        // Two workers' additions and subtractions may be seen in either order, so the count can dip below zero for a
        // moment.
        u32::try_from(self.templates.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Counts a connection or template in, before anybody can find it.
    pub fn enter(&self, activity: Activity) {
        match activity {
            Activity::Template => _ = self.templates.fetch_add(1, Ordering::Relaxed),
            _ => self.occupancy.enter(activity),
        }
    }

    /// A connection that was counted in is in the table: it may have reached the upper threshold.
    pub fn bound(&self) {
        self.occupancy.bound();
    }

    /// Counts a connection or template out; also one that was counted in and did not come about.
    pub fn leave(&self, activity: Activity) {
        match activity {
            Activity::Template => _ = self.templates.fetch_sub(1, Ordering::Relaxed),
            _ => self.occupancy.leave(activity),
        }
    }

    /// A connection that is counted has become active, or inactive, and was not before.
    pub fn turn(&self, to: Activity) {
        self.occupancy.turn(to);
    }

    /// A connection came and went with its one packet. It may leave the destination overloaded.
    pub fn pass(&self) {
        if self.occupancy.is_bounded() {
            self.enter(Activity::Inactive);
            self.bound();
            self.leave(Activity::Inactive);
        }
    }

    /// Sets the thresholds, in connections, and judges by them at once. An upper one of 0 is none; a lower one of 0 is
    /// three quarters of the upper one.
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        self.occupancy.set_bounds(upper, lower);
    }

    /// The upper threshold, in connections; 0: none.
    pub(super) fn upper_threshold(&self) -> u32 {
        self.occupancy.upper()
    }

    /// Whether it takes no new connections, because it reached its upper threshold and has not come down below its
    /// lower one since. Source: ipvs-behaviour, section 7.
    pub fn is_overloaded(&self) -> bool {
        self.occupancy.is_overloaded()
    }
}
