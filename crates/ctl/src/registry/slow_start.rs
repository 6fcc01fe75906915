//! The destinations that start slowly, and for how long.
//!
//! Runs when a service is built, and once a second to end slow starts. A destination starts slowly when it takes new
//! connections again (added, enabled, up by checks, weight above 0) beside others that have their full share. For the
//! length of a slow start after a service has its first such destination, or after the start of xvsd, none does: all of
//! them count as new. `snapshot/slow_start.rs` in `dataplane` computes the share of new connections that the
//! destination gets.

use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::slow_start::SlowStart;
use xvs_model::config::service::ServiceOptions;
use xvs_sched::scheduler::{FullShare, full_share};
use xvs_sched::{ServiceKey, Weight};

use super::Registry;
use super::entries::{DestinationEntry, ServiceEntry};

impl Registry {
    /// Begins the slow starts of destinations that take new connections again, and ends those of destinations that do
    /// not.
    pub(super) fn begin_slow_starts(&mut self, key: ServiceKey, options: &ServiceOptions) {
        let Some(entry) = self.services.get_mut(&key) else { return };
        let now = self.changed_at;
        let length = Duration::from_secs(options.slow_start_seconds.unwrap_or(0).into());
        let serves = entry.destinations.iter().any(DestinationEntry::takes_connections);
        // The first servers, or those that replace all others or the sorry server.
        let all_are_new =
            !entry.destinations.iter().any(|dest| dest.took_connections && dest.takes_connections());
        let before = entry.serving_since.filter(|_| !all_are_new);
        entry.serving_since = serves.then(|| before.unwrap_or(now));
        let others_have_started = entry.serving_since.is_some_and(|since| since.until(now) >= length);
        for dest in &mut entry.destinations {
            let takes = dest.takes_connections();
            let returns = takes && !dest.took_connections;
            dest.took_connections = takes;
            if length.is_zero() || !takes {
                dest.slow_start = None;
            } else if returns && others_have_started {
                dest.slow_start = Some(SlowStart::new(now, length, 1.0));
                self.slow_start_events.push(format!(
                    "slow start of {} in {key}: it gets its full share in {} s",
                    dest.endpoint,
                    length.as_secs()
                ));
            } else {
                dest.slow_start.iter_mut().for_each(|slow| slow.length = length);
            }
        }
        if entry.destinations.iter().any(|dest| dest.slow_start.is_some()) {
            set_full_shares(entry);
            self.starting.insert(key);
        } else {
            self.starting.remove(&key);
        }
    }

    /// Ends slow starts that are over; [`Self::build`] enters their services in the snapshot. Returns whether there
    /// were any.
    pub(crate) fn end_slow_starts(&mut self, now: Millis) -> bool {
        self.changed_at = now;
        let mut any = false;
        for key in &self.starting {
            let Some(entry) = self.services.get_mut(key) else { continue };
            for dest in &mut entry.destinations {
                if dest.slow_start.take_if(|slow| slow.is_over(now)).is_some() {
                    self.unbuilt.insert(*key);
                    any = true;
                }
            }
        }
        any
    }

    /// The slow starts that have begun since the last call, as texts for events.
    pub(crate) fn take_slow_start_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.slow_start_events)
    }
}

/// Enters the shares of new connections that destinations get at the end of their slow start.
fn set_full_shares(entry: &mut ServiceEntry) {
    let Some(kind) = full_share(&entry.scheduler) else { return };
    let part = |dest: &DestinationEntry| match (dest.weight_in_force(), kind) {
        (Weight(0), _) => 0.0,
        (Weight(weight), FullShare::ByWeight) => f64::from(weight),
        (Weight(_), FullShare::Equal | FullShare::All) => 1.0,
    };
    let all = match kind {
        FullShare::ByWeight | FullShare::Equal => entry.destinations.iter().map(part).sum(),
        FullShare::All => 1.0,
    };
    for dest in &mut entry.destinations {
        let full_share = part(dest) / all;
        dest.slow_start.iter_mut().for_each(|slow| slow.full_share = full_share);
    }
}
