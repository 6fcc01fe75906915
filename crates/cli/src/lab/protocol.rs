//! The protocol of `xvs lab`: a director in memory that reads and writes JSON, one object per line.
//!
//! Interfaces, routes and neighbours are defined by requests, frames are hexadecimal text, and only `advance` moves
//! time. Everything else is as in xvsd: control plane, pipeline and connection table. The same input gives the same
//! output. The answer to a line that cannot be carried out is `{"error":…}`, and nothing has changed.
//!
//! Requests: `link`, `route`, `neighbor`, `set`, `adm`, `xvs`, `sync`, `inject`, `explain`, `advance`, `counters`; the
//! types below define their fields.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use xvs_ctl::in_memory::{InMemory, SyncMessage};
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_ipvsadm::Output;
use xvs_ipvsadm::resolver::FixedNames as Names;
use xvs_model::config::load_feedback::Feedback;
use xvs_model::config::settings::{self, Ipvs};
use xvs_model::hexadecimal;
use xvs_model::protocol::question;
use xvs_model::report::explain::Question;
use xvs_proto::MacAddr;
use xvs_proto::network::{Network, NetworkError};

/// A director in memory that answers lines of JSON.
pub struct Lab {
    /// The director.
    pub director: InMemory,
    /// The lab's own host names, so that no DNS is queried and the output is the same on every machine.
    resolver: Names,
}

/// One request.
#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "not a request of the lab; `link`, `route`, `neighbor`, `set`, `adm`, `xvs`, `sync`, `inject`, `explain`, `advance` and `counters` are"
)]
enum Line {
    /// An interface of the director that is a VLAN over another one, whose link address and MTU it has.
    Vlan {
        link: String,
        vlan: u16,
        over: String,
        #[serde(default)]
        addresses: Vec<String>,
    },
    /// An interface of the director.
    Link {
        link: String,
        mac: String,
        #[serde(default)]
        addresses: Vec<String>,
        #[serde(default = "ethernet_mtu")]
        mtu: u32,
    },
    /// A route; `default` is the whole of IPv4.
    Route { route: String, via: IpAddr, link: String },
    /// A resolved neighbour.
    Neighbor { neighbor: IpAddr, mac: String, link: String },
    /// Settings by name.
    Set { set: BTreeMap<String, Value> },
    /// A command line of `xvsadm`, without the program's name.
    Adm {
        adm: Vec<String>,
        #[serde(default)]
        stdin: String,
    },
    /// A command line of `xvs`, without the program's name.
    Xvs { xvs: Vec<String> },
    /// A message of another director's master daemon.
    Sync { sync: String, link: String },
    /// A frame that a link receives.
    Inject { inject: String, frame: String },
    /// What the director would do with a packet, and why; changes nothing. The answer is the document of `xvs explain
    /// --json`.
    Explain { explain: Question },
    /// The same for a frame that a link would receive.
    ExplainFrame { explain: String, frame: String },
    /// Moves time forward by this number of seconds.
    Advance { advance: f64 },
    /// Requests every counter that is not zero.
    Counters { counters: All },
}

/// `true`; nothing else is accepted.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
struct All;

impl TryFrom<bool> for All {
    type Error = &'static str;

    fn try_from(all: bool) -> Result<Self, Self::Error> {
        if all { Ok(Self) } else { Err("counters: true asks for every counter that is not zero") }
    }
}

fn ethernet_mtu() -> u32 {
    1500
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A director without interfaces, at time 0, that treats packets as the kernel's IPVS does.
    ///
    /// # Panics
    /// If the machine has no memory for the table.
    pub fn new() -> Self {
        Self::with(Ipvs::kernel_defaults(), Feedback::default())
    }

    /// Like [`Self::new`], with these settings.
    ///
    /// # Panics
    ///
    /// Like [`Self::new`].
    pub fn with(ipvs: Ipvs, feedback: Feedback) -> Self {
        Self { director: InMemory::new(ipvs, feedback), resolver: Names::well_known() }
    }

    /// Answers one line.
    pub fn answer(&mut self, line: &str) -> String {
        self.reply(line).to_string()
    }

    /// Like [`Self::answer`].
    pub(super) fn reply(&mut self, line: &str) -> Value {
        serde_json::from_str(line)
            .map_err(Into::into)
            .and_then(|line| self.carry_out(line))
            .unwrap_or_else(|error| json!({ "error": error.to_string() }))
    }

    /// Adds a host name, as a line of `/etc/hosts` does; for tests.
    pub fn name_host(&mut self, addr: IpAddr, name: &str) {
        self.resolver = std::mem::take(&mut self.resolver).host(name, addr);
    }

    fn carry_out(&mut self, line: Line) -> Answer {
        match line {
            Line::Vlan { link, vlan, over, addresses } => self.vlan(&link, vlan, &over, &addresses),
            Line::Link { link, mac, addresses, mtu } => self.link(&link, &mac, &addresses, mtu),
            Line::Route { route, via, link } => self.route(&route, via, &link),
            Line::Neighbor { neighbor, mac, link } => self.neighbour(neighbor, &mac, &link),
            Line::Set { set } => self.set(set),
            Line::Adm { adm, stdin } => {
                let argv: Vec<_> = std::iter::once("ipvsadm".to_owned()).chain(adm).collect();
                Ok(printed(xvs_ipvsadm::output(&argv, &stdin, &mut self.director, &self.resolver)))
            }
            Line::Xvs { xvs } => Ok(printed(crate::ask::output(&xvs, &mut self.director))),
            Line::Sync { sync, link } => self.receive_sync(&sync, &link),
            Line::Inject { inject, frame } => self.inject(&inject, &frame),
            Line::Explain { explain } => self.explain(explain),
            Line::ExplainFrame { explain: link, frame } => {
                self.explain(Question { interface: Some(link), frame: Some(frame), ..Question::default() })
            }
            Line::Advance { advance } => self.advance(advance),
            Line::Counters { counters: All } => Ok(json!(self.director.counters())),
        }
    }

    fn link(&mut self, name: &str, mac: &str, addresses: &[String], mtu: u32) -> Answer {
        let mac = mac_address(mac)?;
        let addresses = with_lengths(addresses)?;
        self.change(|network| network.add_link(name, mac, &addresses, mtu).map(drop))
    }

    fn vlan(&mut self, name: &str, id: u16, over: &str, addresses: &[String]) -> Answer {
        let addresses = with_lengths(addresses)?;
        self.change(|network| {
            let (mac, mtu) = network.link_named(over).map(|below| (below.mac, below.mtu)).unwrap_or_default();
            network.add_link(name, mac, &addresses, mtu)?;
            network.make_vlan(name, id, over)
        })
    }

    fn route(&mut self, route: &str, via: IpAddr, link: &str) -> Answer {
        let dest = if route == "default" { "0.0.0.0/0" } else { route }
            .parse()
            .map_err(|error| format!("route {route}: {error}"))?;
        self.change(|network| network.add_route(dest, Some(via), link))
    }

    fn neighbour(&mut self, addr: IpAddr, mac: &str, link: &str) -> Answer {
        let mac = mac_address(mac)?;
        self.change(|network| network.add_neighbour(addr, mac, link))
    }

    fn change(&mut self, change: impl FnOnce(&mut Network) -> Result<(), NetworkError>) -> Answer {
        self.director.change_network(change)?;
        Ok(json!({ "ok": true }))
    }

    fn set(&mut self, set: BTreeMap<String, Value>) -> Answer {
        let set: BTreeMap<_, _> = set
            .into_iter()
            .map(|(key, value)| (key, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect();
        // All settings or none, like every request.
        let (mut ipvs, mut feedback) = self.director.settings();
        for (key, value) in &set {
            settings::set(&mut ipvs, &mut feedback, key, value)?;
        }
        for (key, value) in &set {
            question::set(key.clone(), value.clone()).ask(&mut self.director)?;
        }
        Ok(json!({ "ok": true }))
    }

    fn inject(&mut self, link: &str, frame: &str) -> Answer {
        let bytes =
            hexadecimal::decode(frame).ok_or("frame: an even number of hexadecimal digits is needed")?;
        self.director.burst(link, [bytes.as_slice()])?;
        let (name, reason) = match self.director.verdict().ok_or("the frame did not come in")? {
            Verdict::Transmit(link) if link.is_own() => ("pass", None),
            Verdict::Transmit(_) | Verdict::Fragment { .. } => ("transmit", None),
            Verdict::PassToKernel => ("pass", None),
            Verdict::Consumed | Verdict::Held => ("consumed", None),
            Verdict::Waiting(_) => ("consumed", Some(DropReason::NoNeighbour.name())),
            Verdict::Drop(reason) => ("drop", Some(reason.name())),
        };
        let transmitted = self.transmitted();
        Ok(self.with_sync(json!({ "verdict": name, "tx": transmitted, "reason": reason })))
    }

    fn receive_sync(&mut self, payload: &str, link: &str) -> Answer {
        let payload =
            hexadecimal::decode(payload).ok_or("sync: an even number of hexadecimal digits is needed")?;
        Ok(match self.director.receive_sync(link, &payload) {
            Some(refused) => json!({ "ok": true, "refused": refused }),
            None => json!({ "ok": true }),
        })
    }

    fn explain(&mut self, question: Question) -> Answer {
        Ok(json!(question::explain(question).ask(&mut self.director)?))
    }

    fn advance(&mut self, seconds: f64) -> Answer {
        if !(0.0..=1e9).contains(&seconds) {
            return Err(format!("advance: {seconds} is not a number of seconds that can pass").into());
        }
        self.director.advance(Duration::from_secs_f64(seconds))?;
        let transmitted = self.transmitted();
        Ok(self.with_sync(json!({ "ok": true, "tx": transmitted })))
    }

    /// Adds the messages that the master daemon has sent, while one runs.
    fn with_sync(&mut self, mut answer: Value) -> Value {
        if let Some(messages) = self.director.sync_messages() {
            answer["sync"] = messages
                .iter()
                .map(|SyncMessage { link, port, payload }| {
                    json!({ "link": link, "port": port, "payload": hexadecimal::encode(payload) })
                })
                .collect();
        }
        answer
    }

    fn transmitted(&mut self) -> Value {
        self.director
            .transmitted()
            .iter()
            .map(|(link, frame)| json!({ "link": link, "frame": hexadecimal::encode(frame) }))
            .collect()
    }
}

/// The answer to a line, or why it cannot be carried out.
type Answer = Result<Value, Box<dyn Error>>;

/// What a program printed.
fn printed(Output { exit, stdout, stderr }: Output) -> Value {
    json!({ "exit": exit, "stdout": stdout, "stderr": stderr })
}

fn mac_address(text: &str) -> Result<MacAddr, Box<dyn Error>> {
    Ok(text.parse().map_err(|error| format!("mac {text}: {error}"))?)
}

/// Addresses, each with the length of its prefix.
fn with_lengths(texts: &[String]) -> Result<Vec<(IpAddr, u8)>, Box<dyn Error>> {
    texts
        .iter()
        .map(|text| {
            text.split_once('/')
                .and_then(|(addr, len)| Some((addr.parse().ok()?, len.parse().ok()?)))
                .ok_or_else(|| {
                    format!("{text}: an address with a prefix length like 10.0.0.1/24 is needed").into()
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::lab::protocol::*;

    #[test]
    fn settings_change_all_or_none() {
        let mut lab = Lab::new();
        let answer = lab.answer(r#"{"set":{"am_droprate":7,"drop_entry":9}}"#);
        assert_eq!(answer, r#"{"error":"drop_entry cannot be \"9\"; it takes 0 to 3"}"#);
        assert_eq!(lab.director.settings().0, Ipvs::kernel_defaults());
        assert_eq!(lab.answer(r#"{"set":{"am_droprate":7,"drop_entry":"3"}}"#), r#"{"ok":true}"#);
        assert_eq!(lab.director.settings().0.am_droprate, 7);
    }

    #[test]
    fn host_names_of_the_machine_are_unknown_and_service_names_are_known() {
        let mut lab = Lab::new();
        let answer = lab.answer(r#"{"adm":["-A","-t","localhost:http"]}"#);
        assert!(answer.contains("\"exit\":2"), "{answer}");
        let answer = lab.answer(r#"{"adm":["-A","-t","192.0.2.1:http"]}"#);
        assert!(answer.contains("\"exit\":0"), "{answer}");
    }

    #[test]
    fn an_added_host_name_is_read_and_printed() {
        let mut lab = Lab::new();
        lab.name_host([192, 0, 2, 1].into(), "web.example");
        let answer = lab.answer(r#"{"adm":["-A","-t","web.example:http","-s","rr"]}"#);
        assert!(answer.contains("\"exit\":0"), "{answer}");
        let saved = lab.answer(r#"{"adm":["-S","-n"]}"#);
        assert!(saved.contains("-A -t 192.0.2.1:80 -s rr"), "{saved}");
        let saved = lab.answer(r#"{"adm":["-S"]}"#);
        assert!(saved.contains("-A -t web.example:http -s rr"), "{saved}");
    }
}
