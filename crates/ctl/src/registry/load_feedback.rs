//! Weights from load: a real server's report changes its weight.
//!
//! Called by the control thread for each report, and once a second to expire reports. The operator's weight is kept
//! separately: the weight in force starts from it, is bounded by multiples of it, and returns to it when reports
//! stop; only the operator's weight is saved. A destination of weight 0 stays quiescent. Off until
//! `feedback.services` names services. Pure.
//!
//! Not here: the weights of the entries (`registry/mod.rs`), the services that a report applies to
//! (`registry/load_reports.rs`).

use std::fmt;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_model::config::load_feedback::Feedback;
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

/// A change of a weight in force, by a load report or because reports stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightChange {
    /// The service.
    pub service: ServiceKey,
    /// The destination.
    pub endpoint: Endpoint,
    /// The former weight.
    pub from: Weight,
    /// The new weight.
    pub to: Weight,
    /// The reported load, 0 to 100; `None`: reports have stopped.
    pub load_percent: Option<f64>,
}

impl fmt::Display for WeightChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, endpoint, from, to, load_percent } = self;
        write!(f, "weight of {endpoint} in {service} from {} to {}", from.0, to.0)?;
        match load_percent {
            Some(load) => write!(f, ": its load is {load} %"),
            None => f.write_str(": it reports no load any more"),
        }
    }
}

/// The last report of a destination, and the weight that results from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Not rounded, so that small steps add up.
    weight: f64,
    /// 0 to 100.
    pub load_percent: f64,
    /// Arrival time of the report.
    pub at: Millis,
}

impl Report {
    /// The weight for schedulers; never quiescent.
    pub fn weight(self) -> Weight {
        Weight((self.weight.round() as u32).clamp(1, Weight::MAX.0))
    }
}

/// The report and weight that follow from a load (0 to 100); `own` is the operator's weight.
///
/// Source: Zhang Wensong, «LVS集群的负载调度» (IBM developerWorks China, 2002), dynamic feedback:
/// w' = w + A · ∛(0.95 − load), at most SCALE times the weight that the operator gave; A is 5, SCALE is 10.
pub(crate) fn apply_load(
    feedback: &Feedback,
    own: Weight,
    before: Option<Report>,
    load_percent: f64,
    at: Millis,
) -> Report {
    let from = before.map_or(own.0.into(), |before| before.weight);
    let room = (f64::from(feedback.target_percent.value()) - load_percent) / 100.0;
    let weight = bounded(feedback, own, from + f64::from(feedback.step.value()) * room.cbrt());
    Report { weight, load_percent, at }
}

/// The report with its weight within the bounds in force; `None`: it has expired.
pub(crate) fn refresh(feedback: &Feedback, own: Weight, report: Report, now: Millis) -> Option<Report> {
    let lasts = report.at.until(now) < Duration::from_secs(feedback.timeout_seconds.value().into());
    lasts.then(|| Report { weight: bounded(feedback, own, report.weight), ..report })
}

fn bounded(feedback: &Feedback, own: Weight, weight: f64) -> f64 {
    let percents = [feedback.lowest_percent.value(), feedback.highest_percent.value()];
    let [lowest, highest] = percents.map(|percent| f64::from(own.0) * f64::from(percent) / 100.0);
    weight.clamp(lowest, highest)
}

#[cfg(test)]
mod tests {
    use crate::registry::load_feedback::*;

    const OWN: Weight = Weight(10);

    /// The weights in force after each of these loads.
    fn weights(feedback: &Feedback, own: Weight, loads: &[f64]) -> Vec<u32> {
        let mut report = None;
        let mut apply_load = |load| {
            let next = apply_load(feedback, own, report, load, Millis(0));
            report = Some(next);
            next.weight().0
        };
        loads.iter().map(|load| apply_load(*load)).collect()
    }

    #[test]
    fn a_weight_grows_below_the_target_stays_at_it_and_shrinks_above_it() {
        // By hand: 5 · ∛0.95 = 4.92, 5 · ∛0.45 = 3.83, 5 · ∛-0.05 = -1.84.
        let loads = [0.0, 0.0, 50.0, 95.0, 100.0, 100.0];
        assert_eq!(weights(&Feedback::default(), OWN, &loads), [15, 20, 24, 24, 22, 20]);
    }

    #[test]
    fn a_weight_stays_between_multiples_of_the_operators_weight() {
        let mut feedback = Feedback::default();
        assert_eq!(weights(&feedback, Weight(1), &[0.0, 0.0, 0.0, 100.0]), [6, 10, 10, 8]);
        assert_eq!(weights(&feedback, OWN, &[100.0; 7]), [8, 6, 4, 3, 1, 1, 1]);
        feedback.set("lowest_percent", "50").unwrap();
        feedback.set("highest_percent", "150").unwrap();
        let up_and_down = [0.0, 0.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0];
        assert_eq!(weights(&feedback, OWN, &up_and_down), [15, 15, 13, 11, 9, 8, 6, 5, 5]);
        assert_eq!(weights(&feedback, Weight(1), &[100.0]), [1], "load never makes a destination quiescent");
        assert_eq!(weights(&feedback, Weight::MAX, &[0.0]), [Weight::MAX.0]);
    }

    #[test]
    fn a_report_expires_after_its_timeout_and_narrower_bounds_apply_at_once() {
        let mut feedback = Feedback::default();
        let report = apply_load(&feedback, OWN, None, 0.0, Millis(1000));
        assert_eq!(refresh(&feedback, OWN, report, Millis(60_999)), Some(report));
        assert_eq!(refresh(&feedback, OWN, report, Millis(61_000)), None);
        feedback.set("highest_percent", "120").unwrap();
        assert_eq!(refresh(&feedback, OWN, report, Millis(1000)).unwrap().weight(), Weight(12));
    }
}
