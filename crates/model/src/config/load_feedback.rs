//! Load feedback, weights that follow reported loads or measured times: its settings and the rows of its listing.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

use crate::config::refusal::CommandError;
use crate::config::setting_table::{Value, settings, values};

settings! {
    /// The section `[feedback]` of xvs.toml, and the settings of `xvs set feedback.KEY VALUE`.
    Feedback with prefix "feedback.";

    /// The services that follow load reports.
    services: FollowingServices = FollowingServices::Listed(BTreeSet::new());
    /// The services that follow the times until the first reply of their real servers; of those that are in both lists
    /// load reports decide.
    by_response_times: FollowingServices = FollowingServices::Listed(BTreeSet::new());
    /// The load at which a weight stays, in percent: a smaller load raises the weight, a larger one lowers it.
    target_percent: Within<1, 100> = Within(95);
    /// About the largest change of a weight by one report, and the largest by one measurement.
    step: Within<1, 1000> = Within(5);
    /// The smallest weight, in percent of the operator's weight; at least 1.
    lowest_percent: Within<1, 100> = Within(10);
    /// The largest weight, in percent of the operator's weight.
    highest_percent: Within<100, 100_000> = Within(1000);
    /// Seconds without a report or measurement after which the operator's weight is in force again.
    timeout_seconds: Within<1, 86_400> = Within(60);
}

impl Feedback {
    /// Whether a service follows load reports.
    pub fn follows(&self, service: &ServiceKey) -> bool {
        self.services.contains(service)
    }

    /// Whether a service follows the times until the first reply of its real servers.
    pub fn follows_times(&self, service: &ServiceKey) -> bool {
        self.by_response_times.contains(service) && !self.follows(service)
    }
}

/// A number of a range that includes both its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "u32")]
pub struct Within<const LOW: u32, const HIGH: u32>(u32);

impl<const LOW: u32, const HIGH: u32> Within<LOW, HIGH> {
    /// The number.
    pub fn value(self) -> u32 {
        self.0
    }
}

impl<const LOW: u32, const HIGH: u32> TryFrom<u32> for Within<LOW, HIGH> {
    type Error = String;

    fn try_from(value: u32) -> Result<Self, String> {
        if (LOW..=HIGH).contains(&value) { Ok(Self(value)) } else { Err(Self::range()) }
    }
}

impl<const LOW: u32, const HIGH: u32> Value for Within<LOW, HIGH> {
    fn range() -> String {
        format!("{LOW} to {HIGH}")
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse::<u32>().ok()?.try_into().ok()
    }
}

values! {
    FollowingServices: String, SERVICES;
}

/// The services that follow load reports, or times: `all`, or a list of services as printed by `xvsadm -Ln`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub enum FollowingServices {
    /// All services, also those added later.
    All,
    /// These, whether they are configured now or not.
    Listed(BTreeSet<ServiceKey>),
}

impl FollowingServices {
    fn contains(&self, service: &ServiceKey) -> bool {
        match self {
            Self::All => true,
            Self::Listed(keys) => keys.contains(service),
        }
    }
}

/// The error for a text that is not a list of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it takes {SERVICES}")]
pub struct ServiceListError;

impl FromStr for FollowingServices {
    type Err = ServiceListError;

    fn from_str(text: &str) -> Result<Self, ServiceListError> {
        if text.trim() == "all" {
            return Ok(Self::All);
        }
        text.split(',')
            .filter(|name| !name.trim().is_empty())
            .map(|name| name.parse().map_err(|_| ServiceListError))
            .collect::<Result<_, _>>()
            .map(Self::Listed)
    }
}

impl From<FollowingServices> for String {
    fn from(services: FollowingServices) -> Self {
        match services {
            FollowingServices::All => "all".to_owned(),
            FollowingServices::Listed(keys) => {
                keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

impl TryFrom<String> for FollowingServices {
    type Error = ServiceListError;

    fn try_from(text: String) -> Result<Self, ServiceListError> {
        text.parse()
    }
}

/// A destination of a service that follows reports or times, for `xvs feedback`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FeedbackRow {
    /// The service as listings print it, such as `TCP 198.51.100.100:80`.
    pub service: String,
    /// The real server.
    pub server: Endpoint,
    /// The weight that the operator set.
    pub own_weight: Weight,
    /// The weight that schedulers use.
    pub weight_in_force: Weight,
    /// The last reported load, from 0 to 100; `None`: there is none, or it is too old.
    pub load_percent: Option<f64>,
    /// The time until the first reply, in microseconds: the median of the connections that were measured last; `None`:
    /// the service follows load reports, or the time is too old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_micros: Option<u64>,
    /// Time since the last load report or measurement; `None`: there is none, or it is too old.
    pub age_seconds: Option<u64>,
}

/// The prefix of these settings' names in `xvs set`.
pub const PREFIX: &str = "feedback.";

const SERVICES: &str = "all, or services as listed, such as \"TCP 198.51.100.100:80, FWM 7\"";

#[cfg(test)]
mod tests {
    use crate::config::load_feedback::*;

    #[test]
    fn services_are_given_as_listed_and_none_follows_load_reports_by_default() {
        let web = ServiceKey::tcp(Endpoint::new([198, 51, 100, 100], 80));
        let dns = ServiceKey::udp(Endpoint::new([198, 51, 100, 100], 53));
        let mut feedback = Feedback::default();
        assert!(!feedback.follows(&web));
        feedback.set("services", " TCP  198.51.100.100:80,fwm 7 ").unwrap();
        assert!(feedback.follows(&web) && !feedback.follows(&dns));
        feedback.set("services", "all").unwrap();
        assert!(feedback.follows(&dns));
        feedback.set("by_response_times", "all").unwrap();
        assert!(!feedback.follows_times(&dns), "reports decide where both are wanted");
        feedback.set("services", "").unwrap();
        assert!(feedback.follows_times(&dns) && !feedback.follows(&dns));
        feedback.set("by_response_times", "").unwrap();
        assert_eq!(feedback, Feedback::default());
    }

    #[test]
    fn a_bad_value_is_refused_with_its_key_and_range_and_changes_nothing() {
        let mut feedback = Feedback::default();
        for (key, value) in [
            ("services", "TCP"),
            ("services", "TCP 198.51.100.100"),
            ("target_percent", "0"),
            ("step", "-1"),
            ("lowest_percent", "101"),
            ("highest_percent", "99"),
            ("timeout_seconds", "1.5"),
        ] {
            let refused = feedback.set(key, value).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("feedback.{key} cannot be {value:?}; it takes ")),
                "{refused}"
            );
        }
        let unknown = feedback.set("speed", "1").unwrap_err().to_string();
        for key in Feedback::keys() {
            assert!(unknown.contains(&key), "{key}: {unknown}");
        }
        assert_eq!(feedback, Feedback::default());
        for key in Feedback::keys()
            .iter()
            .filter_map(|key| key.strip_prefix(PREFIX))
            .filter(|key| !["services", "by_response_times"].contains(key))
        {
            feedback.set(key, "100").unwrap();
        }
    }
}
