//! What a keepalived.conf says of a virtual server beside its servers, and what of it holds.
//!
//! Filled statement by statement, because the order of some of them counts. Pure. Source: keepalived's behaviour as it
//! is written down (sections 2.2 and 2.3).

use std::collections::HashSet;

use xvs_model::check::Script;
use xvs_model::service::{DEFAULT_SCHEDULER, Netmask, SchedulerFlags, ServiceOptions};
use xvs_model::virtual_server::RealServer;
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::ServiceKey;

use crate::blocks::Block;
use crate::checks::{TimingOptions, set};
use crate::groups::Entry;
use crate::head::Head;
use crate::sorry_server::SorryDraft;
use crate::values::{Faults, Method};

/// What has been said so far.
#[derive(Default)]
pub(super) struct Settings {
    scheduler: Option<String>,
    pub(super) method: Option<Method>,
    protocol: Option<Protocol>,
    one_packet: bool,
    flags: u8,
    persistence_seconds: Option<u32>,
    granularity: Option<Netmask>,
    engine: Option<String>,
    /// The family of its services as far as it is certain: of addresses, else by `ip_family`, an IPv6 granularity, or
    /// the first server that no tunnel leads to.
    pub(super) family: Option<Family>,
    pub(super) timing: TimingOptions,
    pub(super) omega: bool,
    pub(super) inhibit_on_failure: bool,
    quorum: Option<u32>,
    hysteresis: u32,
    pub(super) quorum_up: Option<Script>,
    pub(super) quorum_down: Option<Script>,
    pub(super) sorry: Option<SorryDraft>,
    pub(super) weight: Option<u32>,
    pub(super) ha_suspend: bool,
    pub(super) host: Option<String>,
}

/// Seconds of a persistence whose time is not said.
const PERSISTENCE_SECONDS: u32 = 360;
const PERSISTENCE_SECONDS_MAX: u64 = 31 * 24 * 60 * 60;

impl Settings {
    /// Nothing but what the head says.
    pub(super) fn of(head: &Head) -> Self {
        let family = head.entries.iter().find_map(|entry| match entry {
            Entry::Address(addr, _) => Some(Family::of(*addr)),
            Entry::Mark(_, family) => *family,
        });
        Self { family, ..Self::default() }
    }

    /// Takes a statement.
    pub(super) fn take(&mut self, block: &Block, faults: &mut Faults) {
        // Of a virtual server it has no value.
        let alone = Block { words: vec![block.keyword().to_owned()], ..block.clone() };
        let of_timing = if block.keyword() == "alpha" { &alone } else { block };
        let known = self.timing.take(of_timing, 1, faults)
            || self.take_scheduling(block, faults)
            || self.take_persistence(block, faults)
            || self.take_sorry_server(block, faults)
            || self.take_rest(block, faults);
        faults.line(block, known);
    }

    fn take_rest(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match block.keyword() {
            "omega" => self.omega = true,
            "inhibit_on_failure" => self.inhibit_on_failure = true,
            "quorum" => self.quorum = faults.number_u32(block, 1..=u32::MAX),
            "hysteresis" => {
                self.hysteresis = faults.number_u32(block, 0..=u32::MAX).unwrap_or(self.hysteresis);
            }
            "quorum_up" => faults.script_once(block, &mut self.quorum_up),
            "quorum_down" => faults.script_once(block, &mut self.quorum_down),
            "weight" => set(&mut self.weight, faults.number_u32(block, 1..=i32::MAX as u32)),
            "ha_suspend" => self.ha_suspend = true,
            "virtualhost" => set(&mut self.host, faults.argument(block).map(str::to_owned)),
            // What only mails and SNMP ask for.
            "smtp_alert" | "snmp_name" => {}
            _ => return false,
        }
        true
    }

    fn take_sorry_server(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match (block.keyword(), &mut self.sorry) {
            ("sorry_server", sorry) => {
                if let Some(read) = SorryDraft::read(block, self.method, faults) {
                    self.family = self.family.or(read.family());
                    *sorry = Some(read);
                }
            }
            ("sorry_server_inhibit", Some(sorry)) => sorry.inhibit = true,
            ("sorry_server_lvs_method", Some(sorry)) => set(&mut sorry.method, faults.method(block)),
            ("sorry_server_inhibit" | "sorry_server_lvs_method", None) => {
                faults.refuse(block, "it stands behind `sorry_server`, and there is none before it");
            }
            _ => return false,
        }
        true
    }

    fn take_scheduling(&mut self, block: &Block, faults: &mut Faults) -> bool {
        let scheduler = self.scheduler.as_deref();
        match block.keyword() {
            "lvs_sched" | "lb_algo" => match faults.argument(block) {
                Some(name) if name != "none" && xvs_sched::scheduler::names().any(|known| known == name) => {
                    self.scheduler = Some(name.to_owned());
                }
                Some(_) => faults.refuse(block, "no scheduler of this name"),
                None => {}
            },
            "lvs_method" | "lb_kind" => set(&mut self.method, faults.method(block)),
            "protocol" => match faults.argument(block).map(str::to_ascii_uppercase).as_deref() {
                Some("TCP") => self.protocol = Some(Protocol::TCP),
                Some("UDP") => self.protocol = Some(Protocol::UDP),
                Some("SCTP") => self.protocol = Some(Protocol::SCTP),
                Some(_) => faults.refuse(block, "a protocol is TCP, UDP or SCTP"),
                None => {}
            },
            "ops" => self.one_packet = true,
            "flag-1" => self.flags |= 1,
            "flag-2" => self.flags |= 2,
            "flag-3" => self.flags |= 4,
            flag @ ("sh-fallback" | "sh-port" | "mh-fallback" | "mh-port") => {
                match flag.split_once('-').filter(|(of, _)| scheduler == Some(of)) {
                    Some((_, "port")) => self.flags |= 2,
                    Some(_) => self.flags |= 1,
                    None => faults.refuse(
                        block,
                        "it stands behind the `lvs_sched` of its scheduler, and none is before it",
                    ),
                }
            }
            "hashed" if matches!(scheduler, Some("sh" | "mh")) => {}
            "hashed" => faults.refuse(block, "it only goes with sh and mh, where it changes nothing"),
            "ip_family" => match faults.argument(block) {
                Some("inet") => self.take_family(Family::V4, block, faults),
                Some("inet6") => self.take_family(Family::V6, block, faults),
                Some(_) => faults.refuse(block, "a family is inet or inet6"),
                None => {}
            },
            _ => return false,
        }
        true
    }

    fn take_family(&mut self, family: Family, block: &Block, faults: &mut Faults) {
        if *self.family.get_or_insert(family) != family {
            faults.refuse(block, "the virtual server is of the other family");
        }
    }

    fn take_persistence(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match block.keyword() {
            "persistence_timeout" => match block.arguments().first().map(String::as_str) {
                None => self.persistence_seconds = Some(PERSISTENCE_SECONDS),
                // As files say it that are older than the word.
                Some("0") => {
                    faults.refuse(block, "0 is no time, and without this line a service is not persistent")
                }
                Some(_) => {
                    let seconds = faults.number(block, 1..=PERSISTENCE_SECONDS_MAX);
                    set(&mut self.persistence_seconds, seconds.map(|seconds| seconds as u32));
                }
            },
            "persistence_granularity" => {
                if let Some(mask) = self.mask(block, faults) {
                    self.granularity = Some(mask);
                    self.persistence_seconds.get_or_insert(PERSISTENCE_SECONDS);
                }
            }
            "persistence_engine" => match faults.argument(block) {
                Some("sip") => self.engine = Some("sip".to_owned()),
                Some(_) => faults.refuse(block, "there is no persistence engine but sip"),
                None => {}
            },
            _ => return false,
        }
        true
    }

    /// A granularity, of the family of the services if they have one.
    fn mask(&mut self, block: &Block, faults: &mut Faults) -> Option<Netmask> {
        let text = faults.argument(block)?;
        let v4 = || text.parse().ok().map(Netmask::V4);
        let v6 = || crate::values::decimal(text).filter(|bits| (1..=128).contains(bits)).map(Netmask::V6);
        let mask = match self.family {
            Some(Family::V4) => v4(),
            Some(Family::V6) => v6(),
            None => v4().or_else(v6),
        };
        match mask {
            Some(Netmask::V6(_)) => self.family = Some(Family::V6),
            Some(Netmask::V4(_)) => {}
            None => faults
                .refuse(block, "it is a netmask for IPv4, and the length of a prefix from 1 to 128 for IPv6"),
        }
        mask
    }

    /// Corrects what does not go with what the services are, and names what is assumed.
    pub(super) fn check(&mut self, head: &Head, block: &Block, faults: &mut Faults) {
        let mut warn = |text: &str| faults.warn(&block.place, format!("`{}`{text}", block.text));
        let has_marks = head.entries.iter().any(|entry| matches!(entry, Entry::Mark(..)));
        let has_addresses = head.entries.iter().any(|entry| matches!(entry, Entry::Address(..)));
        if self.ha_suspend && has_marks {
            warn(": `ha_suspend` is for addresses, and it has a mark; it is left out");
            self.ha_suspend = false;
        }
        match self.protocol {
            None if has_addresses => warn(" names no protocol: UDP"),
            Some(_) if !has_addresses => warn(": a mark has no protocol; it is left out"),
            _ => {}
        }
        if self.one_packet && has_addresses && !matches!(self.protocol, None | Some(Protocol::UDP)) {
            warn(": `ops` is for UDP only; it is left out");
            self.one_packet = false;
        }
        let any_port = head.entries.iter().any(|entry| matches!(entry, Entry::Address(_, 0)));
        if any_port && self.persistence_seconds.is_none() {
            warn(": port 0 is for persistent services; it is one, for 360 s");
            self.persistence_seconds = Some(PERSISTENCE_SECONDS);
        }
        if self.scheduler.is_none() {
            warn(&format!(" names no scheduler: {DEFAULT_SCHEDULER}"));
        }
    }

    /// The services, each once. Marks that do not say their family are of this one.
    pub(super) fn services(&self, head: &Head, of_marks: Family) -> Vec<(ServiceKey, ServiceOptions)> {
        let protocol = self.protocol.unwrap_or(Protocol::UDP);
        let keys = head.entries.iter().map(|entry| match *entry {
            Entry::Address(addr, port) => {
                ServiceKey::Address { protocol, endpoint: Endpoint::new(addr, port) }
            }
            Entry::Mark(mark, family) => ServiceKey::Mark { mark, family: family.unwrap_or(of_marks) },
        });
        let mut known = HashSet::new();
        let keys = keys.filter(|key| known.insert(*key));
        keys.map(|key| (key, self.options(key.family()))).collect()
    }

    fn options(&self, family: Family) -> ServiceOptions {
        let fits = |mask: &Netmask| matches!(mask, Netmask::V4(_)) == (family == Family::V4);
        let persistence = self.persistence_seconds;
        ServiceOptions {
            scheduler: self.scheduler.clone().unwrap_or_else(|| DEFAULT_SCHEDULER.to_owned()),
            flags: SchedulerFlags(self.flags),
            persistence_timeout_seconds: persistence,
            netmask: self.granularity.filter(fits).unwrap_or(Netmask::host(family)),
            persistence_engine: self.engine.clone().filter(|_| persistence.is_some()),
            one_packet: self.one_packet,
            ..ServiceOptions::of(family)
        }
    }

    /// The weight that these servers need, and how much more or less.
    pub(super) fn quorum(&self, servers: &[RealServer], block: &Block, faults: &mut Faults) -> (u32, u32) {
        let mut warn = |text: String| faults.warn(&block.place, format!("`{}`: {text}", block.text));
        let weight: u64 = servers.iter().map(|server| u64::from(server.options.weight.0)).sum();
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let mut quorum = self.quorum.unwrap_or(1);
        if quorum > weight {
            warn(format!("a quorum of {quorum} is more than all weights; it is lowered to {weight}"));
            quorum = weight;
        }
        let hysteresis = self.hysteresis.min(quorum.saturating_sub(1));
        if hysteresis < self.hysteresis {
            warn(format!(
                "a hysteresis of {} is not below the quorum; it is lowered to {hysteresis}",
                self.hysteresis
            ));
        }
        if quorum.saturating_add(hysteresis) > weight {
            warn(format!(
                "quorum {quorum} and hysteresis {hysteresis} are more than all weights, {weight}: it can never be well"
            ));
        }
        (quorum, hysteresis)
    }
}
