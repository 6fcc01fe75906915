//! Weights from the times until the first reply, which the workers and the XDP program measure.
//!
//! Runs every ten seconds for the services in `feedback.by_response_times`. `load_feedback.rs` computes the weight, and
//! `load_reports.rs` expires it.

use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_model::config::load_feedback::Feedback;

use crate::registry::load_feedback::{WeightChange, apply_time};
use crate::registry::responses::{Look, responses};
use crate::registry::{DestinationEntry, Registry};

/// The connections that a median needs.
const CONNECTIONS_MIN: u64 = 30;

impl Registry {
    /// Moves the weights of the services that follow times. Returns those that have changed; [`Self::build`] enters
    /// these services in the snapshot, as after an edit.
    pub fn follow_times(&mut self, feedback: &Feedback, now: Millis) -> Vec<WeightChange> {
        let followed = self.services.keys().filter(|key| feedback.follows_times(key)).copied().collect();
        self.change_weights(followed, |_, dests| apply_times(dests, feedback, now))
    }
}

/// Moves the weights of a service's destinations that take new connections and whose times are new. A single one is its
/// own mean, so its weight moves to the operator's.
fn apply_times(dests: &mut [DestinationEntry], feedback: &Feedback, now: Millis) {
    let lasts = Duration::from_secs(feedback.timeout_seconds.value().into());
    let mut serving: Vec<_> = dests.iter_mut().filter(|dest| dest.takes_connections()).collect();
    let medians: Vec<_> = serving.iter_mut().map(|dest| new_median(dest, lasts, now)).collect();
    let known: Vec<f64> = serving
        .iter()
        .zip(&medians)
        .filter_map(|(dest, new)| new.or_else(|| dest.report?.followed.micros()))
        .collect();
    let mean = known.iter().sum::<f64>() / known.len() as f64;
    for (dest, median) in serving.into_iter().zip(medians) {
        if let Some(micros) = median {
            dest.report = Some(apply_time(feedback, dest.weight, dest.report, micros, mean, now));
        }
    }
}

/// The median of the connections since the last reading; `None` if they are too few yet, or the reading is the first
/// one, or too long ago.
fn new_median(dest: &mut DestinationEntry, lasts: Duration, now: Millis) -> Option<f64> {
    let times = responses(&dest.live);
    let since =
        dest.look.as_ref().filter(|look| look.at.until(now) <= lasts).map(|look| times.since(&look.times));
    if since.as_ref().is_some_and(|since| since.count() < CONNECTIONS_MIN) {
        return None;
    }
    dest.look = Some(Look { at: now, times });
    since.and_then(|since| since.quantile_micros(0.5))
}
