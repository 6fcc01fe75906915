//! A fleet: the directors that follow one rules file in etcd, as `xvs fleet` and `xvs status --json` show it.
//!
//! A [`FleetDirector`] is also the record that each director writes into etcd, where other versions of xvs read it:
//! missing fields have their defaults, and unknown fields are ignored. Names and shapes of fields are an interface for
//! programs, listed in docs/json.md.

use serde::{Deserialize, Serialize};

use crate::foreign_text::ForeignText;
use crate::report::listing::Rates;

/// A director's knowledge of its fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FleetReport {
    /// The name of the fleet.
    pub fleet: String,
    /// The name of this director.
    pub director: String,
    /// The URL that etcd answered at last; `None`: it has not answered.
    pub etcd: Option<String>,
    /// Why etcd does not answer; `None`: it does. The other fields are of its last answer.
    pub silent: Option<Silence>,
    /// The revision of the rules in etcd; `None`: it has none.
    pub rules: Option<u64>,
    /// The rules that wait for `xvs fleet confirm` and run meanwhile; `None`: none wait.
    pub trial: Option<Trial>,
    /// What is wrong with the rules in etcd or the record of this director, a sentence each; also what `silent` says.
    pub warnings: Vec<String>,
    /// The directors with a record in etcd, by name.
    pub directors: Vec<FleetDirector>,
    /// The names of directors whose rules or services have differed for less than ten seconds: they may only not have
    /// reported yet.
    #[serde(default)]
    pub settling: Vec<ForeignText>,
}

/// An etcd that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Silence {
    /// The reason, with the URL and the next step.
    pub why: String,
    /// Time since its last answer, in seconds.
    pub seconds: u64,
}

/// Rules that wait to be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Trial {
    /// Their revision.
    pub revision: u64,
    /// Seconds until this director ends them at the latest; `None`: it does not run them.
    pub seconds_left: Option<u64>,
}

/// A director of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FleetDirector {
    /// The name of the director; `@` and digits behind it: another one had the name first.
    pub name: ForeignText,
    /// Random digits that tell directors of one name apart.
    pub instance: ForeignText,
    /// The host name of its machine.
    pub host: ForeignText,
    /// The version of its xvsd.
    pub version: ForeignText,
    /// The rules of etcd that it runs; `None`: none.
    pub runs: Option<RunningRules>,
    /// The rules in etcd that it has refused; `None`: none.
    pub refused: Option<RefusedRules>,
    /// The first five warnings of its `xvs status`, without those about etcd.
    pub warnings: Vec<ForeignText>,
    /// The number of all its warnings, without those about etcd.
    pub warning_count: u64,
    /// The number of its virtual services.
    pub services: u64,
    /// The number of destinations of all its services.
    pub destinations: u64,
    /// The number of objects in which it differs from the rules that it runs, without services of a keepalived.conf;
    /// `None`: unknown.
    pub differences: Option<u64>,
    /// A digest of all its services and destinations with weights and order; equal digests: equal services.
    pub digest: ForeignText,
    /// The number of connections and templates in its table.
    pub connections: u64,
    /// The rates of all its services, over some seconds.
    pub rates: Rates,
}

/// Rules in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RunningRules {
    /// Their revision.
    pub revision: u64,
    /// The SHA-256 of their text, in hexadecimal digits.
    pub sha256: String,
}

/// Rules that a director cannot run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RefusedRules {
    /// Their revision.
    pub revision: u64,
    /// Why they were refused.
    pub why: ForeignText,
}

impl FleetReport {
    /// The revision that directors are to run.
    pub fn wanted(&self) -> Option<u64> {
        self.trial.as_ref().map(|trial| trial.revision).or(self.rules)
    }

    /// The faults of a director, as a sentence each.
    pub fn faults(&self, director: &FleetDirector) -> Vec<String> {
        let mut faults = Vec::new();
        let settles = self.settling.contains(&director.name);
        let running = director.runs.as_ref().map(|runs| runs.revision);
        if let Some(RefusedRules { revision, why }) = &director.refused {
            faults.push(format!("has refused revision {revision}: {why}"));
        } else if running != self.wanted() && !settles {
            faults.push(match running {
                Some(revision) => format!("runs revision {revision}"),
                None => "runs no rules of etcd".to_owned(),
            });
        }
        if let Some(differences) = director.differences.filter(|differences| *differences > 0 && !settles) {
            let noun = if differences == 1 { "object differs" } else { "objects differ" };
            faults.push(format!(
                "{differences} {noun} from its rules; `xvs events` on {} shows who changed them",
                director.host
            ));
        }
        faults.extend(director.warnings.iter().map(ForeignText::to_string));
        let more = director.warning_count.saturating_sub(director.warnings.len() as u64);
        if more > 0 {
            let noun = if more == 1 { "warning" } else { "warnings" };
            faults.push(format!("{more} more {noun}; see `xvs status` on {}", director.host));
        }
        faults
    }

    /// The directors that run other rules than they should, or other services than their rules define or most others
    /// have.
    pub fn unlike(&self) -> impl Iterator<Item = &FleetDirector> {
        let wanted = self.wanted();
        let differing = self.differing();
        self.directors
            .iter()
            .enumerate()
            .filter(move |(place, director)| {
                let running = director.runs.as_ref().map(|runs| runs.revision);
                running != wanted
                    || director.differences.is_some_and(|count| count > 0)
                    || differing.contains(place)
            })
            .map(|(_, director)| director)
    }

    /// The directors whose services differ from those of most, as positions: by digest, among those that run the same
    /// rules. Without those that settle.
    pub fn differing(&self) -> Vec<usize> {
        self.directors
            .iter()
            .enumerate()
            .filter(|(_, one)| {
                // In a tie no digest is preferred, so all are named.
                let mut others = self.with_rules_of(one).filter(|other| other.digest != one.digest);
                others.any(|other| self.like(other) >= self.like(one)) && !self.settling.contains(&one.name)
            })
            .map(|(place, _)| place)
            .collect()
    }

    /// How many directors with the rules of one have its services.
    fn like(&self, one: &FleetDirector) -> usize {
        self.with_rules_of(one).filter(|other| other.digest == one.digest).count()
    }

    fn with_rules_of(&self, one: &FleetDirector) -> impl Iterator<Item = &FleetDirector> {
        let sha256 = one.runs.as_ref().map(|runs| &runs.sha256);
        self.directors.iter().filter(move |other| other.runs.as_ref().map(|runs| &runs.sha256) == sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn director(name: &str, revision: u64, digest: &str) -> FleetDirector {
        FleetDirector {
            name: name.into(),
            host: name.into(),
            runs: Some(RunningRules { revision, sha256: revision.to_string() }),
            digest: digest.into(),
            ..FleetDirector::default()
        }
    }

    #[test]
    fn directors_that_differ_from_most_with_the_same_rules_are_found_and_both_of_two() {
        let differing = |directors: &[FleetDirector]| {
            FleetReport { directors: directors.to_vec(), ..FleetReport::default() }.differing()
        };
        let [a, b, c] = [director("a", 1, "x"), director("b", 1, "x"), director("c", 1, "y")];
        assert_eq!(differing(&[a.clone(), b.clone(), c.clone()]), [2]);
        assert_eq!(differing(&[a.clone(), c.clone()]), [0, 1]);
        assert_eq!(differing(&[a, b, director("c", 2, "y")]), [0; 0]);
    }

    #[test]
    fn a_director_that_settles_has_no_fault_but_refused_rules_and_warnings() {
        let changed = FleetDirector { differences: Some(1), ..director("a", 1, "x") };
        let directors = vec![changed, director("b", 1, "y")];
        let mut report = FleetReport { rules: Some(2), directors, ..FleetReport::default() };
        let of_first = |report: &FleetReport| report.faults(&report.directors[0]).len();
        assert_eq!((of_first(&report), report.differing().len(), report.unlike().count()), (2, 2, 2));
        report.settling = ["a", "b"].map(Into::into).to_vec();
        assert_eq!((of_first(&report), report.differing().len()), (0, 0));
        report.directors[0].refused = Some(RefusedRules { revision: 2, why: "line 3: no".into() });
        report.directors[0].warnings.push("wan is down".into());
        assert_eq!(of_first(&report), 2);
    }

    #[test]
    fn a_director_on_other_rules_or_with_changes_by_hand_or_warnings_has_faults() {
        let report = FleetReport { rules: Some(2), ..FleetReport::default() };
        let faults = |director: FleetDirector| report.faults(&director).join("; ");
        assert_eq!(faults(director("a", 2, "")), "");
        assert_eq!(faults(director("a", 1, "")), "runs revision 1");
        assert_eq!(faults(FleetDirector { runs: None, ..director("a", 1, "") }), "runs no rules of etcd");
        let refused = Some(RefusedRules { revision: 2, why: "line 3: no".into() });
        let refused = FleetDirector { refused, ..director("a", 1, "") };
        assert_eq!(faults(refused), "has refused revision 2: line 3: no");
        let changed = FleetDirector {
            differences: Some(1),
            warnings: vec!["wan is down".into()],
            warning_count: 3,
            ..director("a", 2, "")
        };
        assert_eq!(
            faults(changed),
            "1 object differs from its rules; `xvs events` on a shows who changed them; wan is down; 2 more warnings; \
             see `xvs status` on a"
        );
        let trial = FleetReport { trial: Some(Trial { revision: 7, seconds_left: None }), ..report.clone() };
        assert_eq!(trial.faults(&director("a", 2, "")), ["runs revision 2"]);
    }

    #[test]
    fn a_record_of_another_version_is_read() {
        let record: FleetDirector =
            serde_json::from_str("{\"name\":\"a\",\"of_a_later_version\":1}").unwrap();
        assert_eq!(record, FleetDirector { name: "a".into(), ..FleetDirector::default() });
    }

    #[test]
    fn a_report_of_an_earlier_xvsd_which_knows_no_settling_is_read() {
        let now =
            FleetReport { rules: Some(2), directors: vec![director("a", 1, "x")], ..FleetReport::default() };
        let mut earlier = serde_json::to_value(&now).unwrap();
        earlier.as_object_mut().unwrap().remove("settling").unwrap();
        assert_eq!(serde_json::from_value::<FleetReport>(earlier).unwrap(), now);
    }
}
