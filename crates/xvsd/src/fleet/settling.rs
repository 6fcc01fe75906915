//! Directors whose report may still be on its way: their difference from the fleet is younger than a report takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use xvs_model::foreign_text::ForeignText;
use xvs_model::report::fleet::FleetReport;

/// The time that a director may take to update its figures (5 s), to write its record and to be read, with slow
/// responses from etcd.
const NORMAL: Duration = Duration::from_secs(10);

/// Since when each director differs, by its name and the revision that it is to run.
#[derive(Default)]
pub(super) struct Settling(BTreeMap<(ForeignText, Option<u64>), Instant>);

impl Settling {
    /// The names of directors that have differed for a short time only. The report has none yet.
    pub(super) fn look(&mut self, report: &FleetReport, now: Instant) -> Vec<ForeignText> {
        let wanted = report.wanted();
        let differing: Vec<_> = report.unlike().map(|director| (director.name.clone(), wanted)).collect();
        self.0.retain(|key, _| differing.contains(key));
        differing
            .into_iter()
            .filter(|key| {
                let since = *self.0.entry(key.clone()).or_insert(now);
                now.saturating_duration_since(since) < NORMAL
            })
            .map(|(name, _)| name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use xvs_model::report::fleet::{FleetDirector, RunningRules};

    use super::*;

    #[test]
    fn a_director_settles_for_ten_seconds_after_new_rules_and_after_each_difference() {
        let (mut settling, begun) = (Settling::default(), Instant::now());
        let director = |name: &str, revision| FleetDirector {
            name: name.into(),
            runs: Some(RunningRules { revision, sha256: revision.to_string() }),
            ..FleetDirector::default()
        };
        let mut look = |wanted, runs, seconds| {
            let directors = vec![director("lb1", wanted), director("lb2", runs)];
            let report = FleetReport { rules: Some(wanted), directors, ..FleetReport::default() };
            let names = settling.look(&report, begun + Duration::from_secs(seconds));
            names.iter().map(ForeignText::to_string).collect::<Vec<_>>()
        };
        assert_eq!(look(1, 1, 0), [""; 0]);
        assert_eq!(look(2, 1, 1), ["lb2"]);
        assert_eq!(look(2, 1, 10), ["lb2"]);
        assert_eq!(look(2, 1, 11), [""; 0], "it has had its time");
        assert_eq!(look(3, 1, 12), ["lb2"], "there are new rules");
        assert_eq!((look(3, 3, 13), look(3, 1, 30)), (Vec::new(), vec!["lb2".to_owned()]));
    }
}
