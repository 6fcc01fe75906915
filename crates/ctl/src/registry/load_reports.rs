//! Weights that follow what real servers report of their load.
//!
//! Runs when a report comes, and now and then for those that grow old. What a report does to a weight is `feedback.rs`'s.

use xvs_dataplane::clock::Millis;
use xvs_model::command::CommandError;
use xvs_model::load_feedback::{Feedback, FeedbackRow};
use xvs_model::load_report::Server;
use xvs_sched::ServiceKey;
use xvs_sched::scheduler::Change;

use crate::registry::load_feedback::{Reweighed, review, weigh};
use crate::registry::{Entry, Known, Registry};

impl Registry {
    /// Takes in a real server's load, 0 to 100. Returns the weights in force that have changed, with which services
    /// reach the snapshot by [`Self::build`] as after an edit.
    ///
    /// # Errors
    /// [`CommandError::UnknownServer`]; [`CommandError::NotFollowed`] with a service that could follow it.
    pub fn report_load(
        &mut self,
        server: Server,
        load_percent: f64,
        feedback: &Feedback,
        now: Millis,
    ) -> Result<Vec<Reweighed>, CommandError> {
        let has_it = |entry: &Entry| entry.destinations.iter().any(|known| server.includes(known.endpoint));
        let having: Vec<_> =
            self.services.iter().filter(|(_, entry)| has_it(entry)).map(|(key, _)| *key).collect();
        let service = *having.first().ok_or(CommandError::UnknownServer(server))?;
        let following: Vec<_> = having.into_iter().filter(|key| feedback.follows(key)).collect();
        if following.is_empty() {
            return Err(CommandError::NotFollowed { server, service });
        }
        Ok(self.reweigh(following, |_, known| {
            if server.includes(known.endpoint) {
                known.report = Some(weigh(feedback, known.weight, known.report, load_percent, now));
            }
        }))
    }

    /// Forgets reports that are too old or not followed any more, and keeps weights within bounds that have changed.
    /// Returns the weights in force that have changed, as [`Self::report_load`].
    pub fn review(&mut self, feedback: &Feedback, now: Millis) -> Vec<Reweighed> {
        let reported = |entry: &Entry| entry.destinations.iter().any(|known| known.report.is_some());
        let keys: Vec<_> =
            self.services.iter().filter(|(_, entry)| reported(entry)).map(|(key, _)| *key).collect();
        self.reweigh(keys, |key, known| {
            let followed = known.report.filter(|_| feedback.follows(&key));
            known.report = followed.and_then(|report| review(feedback, known.weight, report, now));
        })
    }

    fn reweigh(
        &mut self,
        services: Vec<ServiceKey>,
        change: impl Fn(ServiceKey, &mut Known),
    ) -> Vec<Reweighed> {
        let mut all = Vec::new();
        for service in services {
            let Some(entry) = self.services.get_mut(&service) else { continue };
            let before = all.len();
            for known in &mut entry.destinations {
                let from = known.weight_in_force();
                change(service, known);
                let (to, load_percent) =
                    (known.weight_in_force(), known.report.map(|report| report.load_percent));
                if to != from {
                    all.push(Reweighed { service, endpoint: known.endpoint, from, to, load_percent });
                }
            }
            if all.len() > before
                && let Some(entry) = self.services.remove(&service)
            {
                self.changed(service, entry, Change::Edited);
            }
        }
        all
    }

    /// The destinations of services that follow load reports.
    pub fn feedback_rows(&self, feedback: &Feedback, now: Millis) -> Vec<FeedbackRow> {
        let followed = self.services.iter().filter(|(key, _)| feedback.follows(key));
        let all = followed.flat_map(|(key, entry)| entry.destinations.iter().map(move |known| (key, known)));
        all.map(|(key, known)| FeedbackRow {
            service: key.to_string(),
            server: known.endpoint,
            own_weight: known.weight,
            weight_in_force: known.weight_in_force(),
            load_percent: known.report.map(|report| report.load_percent),
            age_seconds: known.report.map(|report| report.at.until(now).as_secs()),
        })
        .collect()
    }
}
