//! Weights from load: a real server's report, or the time until its first reply, changes its weight.
//!
//! Called by the control thread for each report and each measurement, and once a second to expire them. The operator's
//! weight is kept separately: the weight in force starts from it, is bounded by multiples of it, and returns to it when
//! reports and measurements stop; only the operator's weight is saved. A destination with weight 0 stays quiescent. Off
//! until `feedback.services` or `feedback.by_response_times` names services. Pure.

use std::fmt;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_model::config::load_feedback::Feedback;
use xvs_model::report::response::short_time;
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

/// A change of a weight in force, by a load report or a measured time, or because they stopped.
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
    /// The quantity that the weight follows; `None` if only the operator's weight applies, because the former quantity
    /// is no longer available.
    pub followed: Option<Followed>,
}

/// The quantity that a weight follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Followed {
    /// The reported load, 0 to 100.
    Load(f64),
    /// The median time until the first reply, in microseconds.
    Time(f64),
}

impl Followed {
    /// The load; `None`: it is a time.
    pub fn load_percent(self) -> Option<f64> {
        if let Self::Load(percent) = self { Some(percent) } else { None }
    }

    /// The time in microseconds; `None`: it is a load.
    pub fn micros(self) -> Option<f64> {
        if let Self::Time(micros) = self { Some(micros) } else { None }
    }
}

impl fmt::Display for WeightChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, endpoint, from, to, followed } = self;
        write!(f, "weight of {endpoint} in {service} from {} to {}", from.0, to.0)?;
        match followed {
            Some(Followed::Load(percent)) => write!(f, ": its load is {percent} %"),
            Some(Followed::Time(micros)) => {
                write!(f, ": its first reply takes {}", short_time(micros.round() as u64))
            }
            None => f.write_str(": its load is not known any more"),
        }
    }
}

/// The last report or measurement of a destination, and the weight that results from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Not rounded, so that small steps add up.
    weight: f64,
    /// The reported or measured quantity.
    pub followed: Followed,
    /// When it was.
    pub at: Millis,
}

impl Report {
    /// The weight for schedulers; never quiescent.
    pub fn weight(self) -> Weight {
        Weight((self.weight.round() as u32).clamp(1, Weight::MAX.0))
    }
}

/// The report and the weight that result from a load (0 to 100); `own` is the operator's weight.
///
/// Source: Zhang Wensong, "LVS集群的负载调度" (IBM developerWorks China, 2002), dynamic feedback: w' = w + A · ∛(0.95 − load),
/// at most SCALE times the weight that the operator gave; A is 5, SCALE is 10.
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
    Report { weight, followed: Followed::Load(load_percent), at }
}

/// The report and the weight that result from the median time of a real server until its first reply; `mean` is the
/// mean of those in its service, in the same unit.
///
/// A real server that takes twice the mean should have half the operator's weight. The times follow the weights only
/// after a while, so a weight moves a quarter of the distance, and one step at most.
pub(crate) fn apply_time(
    feedback: &Feedback,
    own: Weight,
    before: Option<Report>,
    micros: f64,
    mean: f64,
    at: Millis,
) -> Report {
    let from = before.map_or(own.0.into(), |before| before.weight);
    let wanted = bounded(feedback, own, f64::from(own.0) * mean / micros);
    let step = f64::from(feedback.step.value());
    let weight = bounded(feedback, own, from + ((wanted - from) / 4.0).clamp(-step, step));
    Report { weight, followed: Followed::Time(micros), at }
}

/// The report with its weight within the bounds in force; `None` if it has expired.
pub(crate) fn refresh(feedback: &Feedback, own: Weight, report: Report, now: Millis) -> Option<Report> {
    let lasts = report.at.until(now) < Duration::from_secs(feedback.timeout_seconds.value().into());
    lasts.then(|| Report { weight: bounded(feedback, own, report.weight), ..report })
}

fn bounded(feedback: &Feedback, own: Weight, weight: f64) -> f64 {
    let [lowest, highest] = [feedback.lowest_percent.value(), feedback.highest_percent.value()]
        .map(|percent| f64::from(own.0) * f64::from(percent) / 100.0);
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
    fn a_weight_goes_a_quarter_of_the_way_to_its_share_by_time_and_a_step_at_most() {
        let feedback = Feedback::default();
        let weights = |own: u32, micros: f64, looks: usize| {
            let mut report = None;
            let mut apply = || {
                let next = apply_time(&feedback, Weight(own), report, micros, 1000.0, Millis(0));
                report = Some(next);
                next.weight().0
            };
            (0..looks).map(|_| apply()).collect::<Vec<_>>()
        };
        assert_eq!(weights(100, 1000.0, 2), [100, 100]);
        // By hand: 20 is wanted; 10 + 10/4 = 12.5, then 12.5 + 7.5/4 = 14.375, and so on.
        assert_eq!(weights(10, 500.0, 20).iter().step_by(5).collect::<Vec<_>>(), [&13, &18, &20, &20]);
        // 50 is wanted, from 100: steps of 5.
        assert_eq!(weights(100, 2000.0, 3), [95, 90, 85]);
        assert_eq!(weights(10, 1e9, 40).last(), Some(&1), "within the bounds");
        assert_eq!(weights(10, 0.5, 40).last(), Some(&100), "within the bounds");
    }

    #[test]
    fn a_change_says_what_the_weight_follows() {
        let endpoint = Endpoint::new([192, 0, 2, 11], 80);
        let service = ServiceKey::tcp(Endpoint::new([198, 51, 100, 100], 80));
        let text =
            |followed| WeightChange { service, endpoint, from: OWN, to: Weight(7), followed }.to_string();
        let prefix = "weight of 192.0.2.11:80 in TCP 198.51.100.100:80 from 10 to 7: ";
        assert_eq!(text(Some(Followed::Load(99.5))), format!("{prefix}its load is 99.5 %"));
        assert_eq!(text(Some(Followed::Time(1234.5))), format!("{prefix}its first reply takes 1.2ms"));
        assert_eq!(text(None), format!("{prefix}its load is not known any more"));
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
