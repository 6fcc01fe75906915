//! Load reports: the services that they apply to, and the weights that change.
//!
//! Runs for each report, and once a second to expire reports. Not here: the weight that follows from a load
//! (`load_feedback.rs`).

use xvs_dataplane::clock::Millis;
use xvs_model::config::load_feedback::{Feedback, FeedbackRow};
use xvs_model::config::load_report::Server;
use xvs_model::config::refusal::CommandError;
use xvs_sched::ServiceKey;
use xvs_sched::scheduler::Change;

use crate::registry::load_feedback::{WeightChange, apply_load, refresh};
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
        Ok(self.change_weights(following, |_, dest| {
            if server.includes(dest.endpoint) {
                dest.report = Some(apply_load(feedback, dest.weight, dest.report, load_percent, now));
            }
        }))
    }

    /// Drops expired reports, and reports of services that no longer follow them, and applies changed bounds. Returns
    /// the weights that have changed, as [`Self::report_load`].
    pub fn review_reports(&mut self, feedback: &Feedback, now: Millis) -> Vec<WeightChange> {
        let keys = self.services_with(|dest| dest.report.is_some());
        self.change_weights(keys, |key, dest| {
            let followed = dest.report.filter(|_| feedback.follows(&key));
            dest.report = followed.and_then(|report| refresh(feedback, dest.weight, report, now));
        })
    }

    fn services_with(&self, is_wanted: impl Fn(&DestinationEntry) -> bool) -> Vec<ServiceKey> {
        let services = self.services.iter();
        services.filter(|(_, entry)| entry.destinations.iter().any(&is_wanted)).map(|(key, _)| *key).collect()
    }

    fn change_weights(
        &mut self,
        services: Vec<ServiceKey>,
        change: impl Fn(ServiceKey, &mut DestinationEntry),
    ) -> Vec<WeightChange> {
        let mut all = Vec::new();
        for service in services {
            let Some(entry) = self.services.get_mut(&service) else { continue };
            let before = all.len();
            for dest in &mut entry.destinations {
                let from = dest.weight_in_force();
                change(service, dest);
                let to = dest.weight_in_force();
                let load_percent = dest.report.map(|report| report.load_percent);
                if to != from {
                    all.push(WeightChange { service, endpoint: dest.endpoint, from, to, load_percent });
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

    /// One row for each destination of the services that follow load reports.
    pub fn feedback_rows(&self, feedback: &Feedback, now: Millis) -> Vec<FeedbackRow> {
        let followed = self.services.iter().filter(|(key, _)| feedback.follows(key));
        let all = followed.flat_map(|(key, entry)| entry.destinations.iter().map(move |dest| (key, dest)));
        all.map(|(key, dest)| FeedbackRow {
            service: key.to_string(),
            server: dest.endpoint,
            own_weight: dest.weight,
            weight_in_force: dest.weight_in_force(),
            load_percent: dest.report.map(|report| report.load_percent),
            age_seconds: dest.report.map(|report| report.at.until(now).as_secs()),
        })
        .collect()
    }
}
