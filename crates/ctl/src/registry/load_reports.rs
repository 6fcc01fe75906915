//! Load reports: the services to which they apply, and the weights that change.
//!
//! Runs for each report, and once a second to expire reports. `load_feedback.rs` computes the weight that results from
//! a load.

use xvs_dataplane::clock::Millis;
use xvs_model::config::load_feedback::{Feedback, FeedbackRow};
use xvs_model::config::load_report::Server;
use xvs_model::config::refusal::CommandError;
use xvs_sched::ServiceKey;
use xvs_sched::scheduler::Change;

use crate::registry::load_feedback::{Followed, WeightChange, apply_load, refresh};
use crate::registry::{DestinationEntry, Registry};

impl Registry {
    /// Applies a real server's load, 0 to 100, to all services that follow load reports. Returns the weights that
    /// have changed; [`Self::build`] enters these services in the snapshot, as after an edit.
    ///
    /// # Errors
    /// [`CommandError::UnknownServer`]: no service has this real server. [`CommandError::NotFollowed`]: its services
    /// do not follow load reports; names the first of them.
    pub fn report_load(
        &mut self,
        server: Server,
        load_percent: f64,
        feedback: &Feedback,
        now: Millis,
    ) -> Result<Vec<WeightChange>, CommandError> {
        let holders = self.services_with(|dest| server.includes(dest.endpoint));
        let service = *holders.first().ok_or(CommandError::UnknownServer(server))?;
        let following: Vec<_> = holders.into_iter().filter(|key| feedback.follows(key)).collect();
        if following.is_empty() {
            return Err(CommandError::NotFollowed { server, service });
        }
        Ok(self.change_weights(following, |_, dests| {
            for dest in dests.iter_mut().filter(|dest| server.includes(dest.endpoint)) {
                dest.report = Some(apply_load(feedback, dest.weight, dest.report, load_percent, now));
            }
        }))
    }

    /// Drops expired reports and measurements, and those for services that no longer follow them, and applies changed
    /// bounds. Returns the weights that have changed, like [`Self::report_load`].
    pub fn review_reports(&mut self, feedback: &Feedback, now: Millis) -> Vec<WeightChange> {
        let keys = self.services_with(|dest| dest.report.is_some());
        self.change_weights(keys, |key, dests| {
            for dest in dests {
                dest.report = dest
                    .report
                    .filter(|report| match report.followed {
                        Followed::Load(_) => feedback.follows(&key),
                        Followed::Time(_) => feedback.follows_times(&key),
                    })
                    .and_then(|report| refresh(feedback, dest.weight, report, now));
            }
        })
    }

    fn services_with(&self, is_wanted: impl Fn(&DestinationEntry) -> bool) -> Vec<ServiceKey> {
        self.services
            .iter()
            .filter(|(_, entry)| entry.destinations.iter().any(&is_wanted))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Applies a change to the destinations of these services. Returns the weights in force that differ afterwards.
    pub(super) fn change_weights(
        &mut self,
        services: Vec<ServiceKey>,
        change: impl Fn(ServiceKey, &mut [DestinationEntry]),
    ) -> Vec<WeightChange> {
        let mut all = Vec::new();
        for service in services {
            let Some(entry) = self.services.get_mut(&service) else { continue };
            let before = all.len();
            let weights: Vec<_> = entry.destinations.iter().map(DestinationEntry::weight_in_force).collect();
            change(service, &mut entry.destinations);
            for (dest, from) in entry.destinations.iter().zip(weights) {
                let to = dest.weight_in_force();
                if to != from {
                    let followed = dest.report.map(|report| report.followed);
                    all.push(WeightChange { service, endpoint: dest.endpoint, from, to, followed });
                }
            }
            if all.len() > before
                && let Some(entry) = self.services.remove(&service)
            {
                self.store_changed(service, entry, Change::Edited);
            }
        }
        all
    }

    /// One row for each destination of the services that follow load reports or times.
    pub fn feedback_rows(&self, feedback: &Feedback, now: Millis) -> Vec<FeedbackRow> {
        self.services
            .iter()
            .filter(|(key, _)| feedback.follows(key) || feedback.follows_times(key))
            .flat_map(|(key, entry)| entry.destinations.iter().map(move |dest| (key, dest)))
            .map(|(key, dest)| {
                let followed = dest.report.map(|report| report.followed);
                FeedbackRow {
                    service: key.to_string(),
                    server: dest.endpoint,
                    own_weight: dest.weight,
                    weight_in_force: dest.weight_in_force(),
                    load_percent: followed.and_then(Followed::load_percent),
                    response_micros: followed.and_then(Followed::micros).map(|micros| micros.round() as u64),
                    age_seconds: dest.report.map(|report| report.at.until(now).as_secs()),
                }
            })
            .collect()
    }
}
