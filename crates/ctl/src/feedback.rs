//! Weights from load: what real servers report moves the weights of services that follow such reports.
//!
//! Asked by the control thread for each report, and once a second for reports that stay away. The operator's own weight
//! is kept apart: it is what the weight in force starts from, what bounds it, what it returns to, and what is saved. A
//! destination of weight 0 stays quiescent whatever is reported. Off until `feedback.services` names services. Pure.
//!
//! Not here: the weights themselves and their way to the schedulers (`registry.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xvs_dataplane::clock::Millis;
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

use crate::message::CommandError;

/// The section `[feedback]`, and what `xvs set feedback.KEY VALUE` sets live.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feedback {
    /// Which services follow load reports. Default: none.
    pub services: Followed,
    /// The load at which a weight stays as it is, in percent: below it grows, above it shrinks. Default: 95.
    pub target_percent: Within<1, 100>,
    /// How far one report moves a weight at most, about. Default: 5.
    pub step: Within<1, 1000>,
    /// The least weight, in percent of the operator's; never less than 1. Default: 10.
    pub lowest_percent: Within<1, 100>,
    /// The greatest weight, in percent of the operator's. Default: 1,000.
    pub highest_percent: Within<100, 100_000>,
    /// After how many seconds without a report the operator's weight is in force again. Default: 60.
    pub timeout_seconds: Within<1, 86_400>,
}

impl Default for Feedback {
    fn default() -> Self {
        Self {
            services: Followed::These(BTreeSet::new()),
            target_percent: Within(95),
            step: Within(5),
            lowest_percent: Within(10),
            highest_percent: Within(1000),
            timeout_seconds: Within(60),
        }
    }
}

impl Feedback {
    /// Sets one by name, without the section's.
    ///
    /// # Errors
    /// [`CommandError::UnknownSetting`] or [`CommandError::BadSetting`]; then nothing has changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), CommandError> {
        let bad = |range: String| CommandError::BadSetting {
            key: format!("{PREFIX}{key}"),
            value: value.to_owned(),
            range,
        };
        match key {
            "services" => self.services = value.parse().map_err(|NotServices| bad(SERVICES.to_owned()))?,
            "target_percent" => self.target_percent = value.parse().map_err(bad)?,
            "step" => self.step = value.parse().map_err(bad)?,
            "lowest_percent" => self.lowest_percent = value.parse().map_err(bad)?,
            "highest_percent" => self.highest_percent = value.parse().map_err(bad)?,
            "timeout_seconds" => self.timeout_seconds = value.parse().map_err(bad)?,
            _ => {
                let key = format!("{PREFIX}{key}");
                return Err(CommandError::UnknownSetting { key, known: Self::keys().collect() });
            }
        }
        Ok(())
    }

    /// Every key with the section's name.
    pub fn keys() -> impl Iterator<Item = String> {
        KEYS.into_iter().map(|name| format!("{PREFIX}{name}"))
    }

    /// Whether a service follows load reports.
    pub fn follows(&self, service: &ServiceKey) -> bool {
        match &self.services {
            Followed::All => true,
            Followed::These(keys) => keys.contains(service),
        }
    }

    /// What a load (0 to 100) makes of a destination with this weight of the operator's.
    ///
    /// Source: Zhang Wensong, «LVS集群的负载调度» (IBM developerWorks China, 2002), dynamic feedback:
    /// w' = w + A · ∛(0.95 − load), at most SCALE times the weight that the operator gave; A is 5, SCALE is 10.
    pub fn weigh(&self, own: Weight, before: Option<Report>, load_percent: f64, at: Millis) -> Report {
        let from = before.map_or(own.0.into(), |before| before.weight);
        let room = (f64::from(self.target_percent.0) - load_percent) / 100.0;
        let weight = self.bounded(own, from + f64::from(self.step.0) * room.cbrt());
        Report { weight, load_percent, at }
    }

    /// A report as it is to be regarded now; `None`: not any more.
    pub fn review(&self, own: Weight, report: Report, now: Millis) -> Option<Report> {
        let lasts = report.at.until(now) < Duration::from_secs(self.timeout_seconds.0.into());
        lasts.then(|| Report { weight: self.bounded(own, report.weight), ..report })
    }

    fn bounded(&self, own: Weight, weight: f64) -> f64 {
        let percent = |percent: u32| f64::from(own.0) * f64::from(percent) / 100.0;
        weight.clamp(percent(self.lowest_percent.0), percent(self.highest_percent.0))
    }
}

/// A number in a range, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct Within<const LOW: u32, const HIGH: u32>(u32);

impl<const LOW: u32, const HIGH: u32> TryFrom<u32> for Within<LOW, HIGH> {
    type Error = String;

    fn try_from(value: u32) -> Result<Self, String> {
        if (LOW..=HIGH).contains(&value) { Ok(Self(value)) } else { Err(format!("{LOW} to {HIGH}")) }
    }
}

/// The error is the range.
impl<const LOW: u32, const HIGH: u32> FromStr for Within<LOW, HIGH> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{LOW} to {HIGH}")).and_then(u32::try_into)
    }
}

/// A weight in force that load reports have moved, or their staying away.
#[derive(Debug, Clone, PartialEq)]
pub struct Reweighed {
    /// Whose.
    pub service: ServiceKey,
    /// Of which destination.
    pub endpoint: Endpoint,
    /// What it was.
    pub from: Weight,
    /// What it is now.
    pub to: Weight,
    /// The report that moved it; `None`: there is none any more.
    pub load_percent: Option<f64>,
}

impl fmt::Display for Reweighed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, endpoint, from, to, load_percent } = self;
        write!(f, "weight of {endpoint} in {service} from {} to {}", from.0, to.0)?;
        match load_percent {
            Some(load) => write!(f, ": its load is {load} %"),
            None => f.write_str(": it reports no load any more"),
        }
    }
}

/// What was last reported of a destination, and the weight that it has by that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Not rounded, so that small steps add up.
    weight: f64,
    /// 0 to 100.
    pub load_percent: f64,
    /// When it came.
    pub at: Millis,
}

impl Report {
    /// The weight for schedulers; never quiescent.
    pub fn weight(self) -> Weight {
        Weight((self.weight.round() as u32).clamp(1, Weight::MAX.0))
    }
}

/// Which services follow load reports: `all`, or a list of them as `xvsadm -Ln` names them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Followed {
    /// Every one, also those to come.
    All,
    /// These, whether they are configured now or not.
    These(BTreeSet<ServiceKey>),
}

/// A text that names no services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotServices;

impl fmt::Display for NotServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it takes {SERVICES}")
    }
}

impl FromStr for Followed {
    type Err = NotServices;

    fn from_str(text: &str) -> Result<Self, NotServices> {
        if text.trim() == "all" {
            return Ok(Self::All);
        }
        let names = text.split(',').filter(|name| !name.trim().is_empty());
        names.map(|name| name.parse().map_err(|_| NotServices)).collect::<Result<_, _>>().map(Self::These)
    }
}

impl TryFrom<String> for Followed {
    type Error = NotServices;

    fn try_from(text: String) -> Result<Self, NotServices> {
        text.parse()
    }
}

/// Which destinations a report is about: those at an address, or only those at one port there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Server {
    addr: IpAddr,
    port: Option<u16>,
}

impl Server {
    /// Whether a destination is meant.
    pub fn is(self, endpoint: Endpoint) -> bool {
        self.addr == endpoint.addr && self.port.is_none_or(|port| port == endpoint.port)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.addr, port).fmt(f),
            None => self.addr.fmt(f),
        }
    }
}

/// A text that names no real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAServer;

impl fmt::Display for NotAServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a real server is an address, or ADDRESS:PORT, like 192.0.2.11 or [2001:db8::1]:80")
    }
}

impl std::error::Error for NotAServer {}

impl FromStr for Server {
    type Err = NotAServer;

    fn from_str(text: &str) -> Result<Self, NotAServer> {
        if let Ok(addr) = text.parse() {
            return Ok(Self { addr, port: None });
        }
        let socket: SocketAddr = text.parse().map_err(|_| NotAServer)?;
        Ok(Self { addr: socket.ip(), port: Some(socket.port()) })
    }
}

impl TryFrom<String> for Server {
    type Error = NotAServer;

    fn try_from(text: String) -> Result<Self, NotAServer> {
        text.parse()
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.to_string()
    }
}

/// A destination of a service that follows reports, for `xvs feedback`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeedbackRow {
    /// Its service, as listed.
    pub service: String,
    /// Which.
    pub server: Endpoint,
    /// The operator's.
    pub own_weight: Weight,
    /// What schedulers go by.
    pub weight_in_force: Weight,
    /// What was last reported, 0 to 100; `None`: nothing, or too long ago.
    pub load_percent: Option<f64>,
    /// How long ago.
    pub age_seconds: Option<u64>,
}

/// What stands before a key in `xvs set`.
pub const PREFIX: &str = "feedback.";
const KEYS: [&str; 6] =
    ["highest_percent", "lowest_percent", "services", "step", "target_percent", "timeout_seconds"];
const SERVICES: &str = "all, or services as listed, such as \"TCP 198.51.100.100:80, FWM 7\"";

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Weight = Weight(10);

    /// The weights in force after these loads, one after the other.
    fn weights(feedback: &Feedback, own: Weight, loads: &[f64]) -> Vec<u32> {
        let mut report = None;
        let mut weigh = |load| {
            let next = feedback.weigh(own, report, load, Millis(0));
            report = Some(next);
            next.weight().0
        };
        loads.iter().map(|load| weigh(*load)).collect()
    }

    #[test]
    fn a_weight_grows_below_the_target_stays_at_it_and_shrinks_above_it() {
        // By hand: 5 · ∛0.95 = 4.92, 5 · ∛0.45 = 3.83, 5 · ∛-0.05 = -1.84.
        let loads = [0.0, 0.0, 50.0, 95.0, 100.0, 100.0];
        assert_eq!(weights(&Feedback::default(), OWN, &loads), [15, 20, 24, 24, 22, 20]);
    }

    #[test]
    fn a_weight_stays_between_multiples_of_the_operators() {
        let mut feedback = Feedback::default();
        assert_eq!(weights(&feedback, Weight(1), &[0.0, 0.0, 0.0, 100.0]), [6, 10, 10, 8]);
        assert_eq!(weights(&feedback, OWN, &[100.0; 7]), [8, 6, 4, 3, 1, 1, 1]);
        feedback.set("lowest_percent", "50").unwrap();
        feedback.set("highest_percent", "150").unwrap();
        let up_and_down = [0.0, 0.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0];
        assert_eq!(weights(&feedback, OWN, &up_and_down), [15, 15, 13, 11, 9, 8, 6, 5, 5]);
        assert_eq!(weights(&feedback, Weight(1), &[100.0]), [1], "load makes nobody quiescent");
        assert_eq!(weights(&feedback, Weight::MAX, &[0.0]), [Weight::MAX.0]);
    }

    #[test]
    fn a_report_lasts_for_its_time_and_narrower_bounds_hold_at_once() {
        let mut feedback = Feedback::default();
        let report = feedback.weigh(OWN, None, 0.0, Millis(1000));
        assert_eq!(feedback.review(OWN, report, Millis(60_999)), Some(report));
        assert_eq!(feedback.review(OWN, report, Millis(61_000)), None);
        feedback.set("highest_percent", "120").unwrap();
        assert_eq!(feedback.review(OWN, report, Millis(1000)).unwrap().weight(), Weight(12));
    }

    #[test]
    fn services_read_as_they_are_listed_and_none_are_followed_unless_named() {
        let web = ServiceKey::tcp(Endpoint::new([198, 51, 100, 100], 80));
        let dns = ServiceKey::udp(Endpoint::new([198, 51, 100, 100], 53));
        let mut feedback = Feedback::default();
        assert!(!feedback.follows(&web));
        feedback.set("services", " TCP  198.51.100.100:80,fwm 7 ").unwrap();
        assert!(feedback.follows(&web) && !feedback.follows(&dns));
        feedback.set("services", "all").unwrap();
        assert!(feedback.follows(&dns));
        feedback.set("services", "").unwrap();
        assert_eq!(feedback, Feedback::default());
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key_and_range_and_changes_nothing() {
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
        for key in KEYS.iter().filter(|key| **key != "services") {
            feedback.set(key, "100").unwrap();
        }
    }

    #[test]
    fn a_server_is_an_address_or_one_port_of_it() {
        let at = |port| Endpoint::new([192, 0, 2, 11], port);
        let (any, one): (Server, Server) = ("192.0.2.11".parse().unwrap(), "192.0.2.11:80".parse().unwrap());
        assert!(any.is(at(80)) && any.is(at(81)) && one.is(at(80)) && !one.is(at(81)));
        for text in ["192.0.2.11", "192.0.2.11:80", "2001:db8::1", "[2001:db8::1]:80"] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), text);
        }
        for text in ["", "web1", "192.0.2.11:", "192.0.2.11:99999", "192.0.2"] {
            assert_eq!(text.parse::<Server>(), Err(NotAServer), "{text}");
        }
    }
}
