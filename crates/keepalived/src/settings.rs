//! The settings of a virtual server, apart from its real servers.
//!
//! Statements are applied one by one, because the order of some of them matters. Pure. Source: keepalived-behaviour,
//! sections 2.2 and 2.3.

use std::collections::HashSet;

use xvs_ipvsadm::scheduler_flags;
use xvs_model::config::service::{DEFAULT_SCHEDULER, Netmask, SchedulerFlags, ServiceOptions};
use xvs_model::config::slow_start::SLOW_START_MAX_SECONDS;
use xvs_model::health_checks::check::Script;
use xvs_model::health_checks::virtual_server::RealServer;
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::ServiceKey;

use crate::blocks::Block;
use crate::groups::Entry;
use crate::head::Head;
use crate::sorry_server::SorryDraft;
use crate::timing::{TimingOptions, set};
use crate::values::{Faults, Method, decimal};

/// The settings of the statements so far.
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
    /// The family of the services, if known: from the addresses, otherwise from `ip_family`, a granularity, the first
    /// real server whose method is not TUN, or such a sorry server.
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
    slow_start_seconds: Option<u32>,
    pub(super) smtp_alert: Option<bool>,
}

/// The default persistence timeout.
const PERSISTENCE_SECONDS: u32 = 360;
const PERSISTENCE_SECONDS_MAX: u32 = 31 * 24 * 60 * 60;

impl Settings {
    /// The settings that follow from the head.
    pub(super) fn of(head: &Head) -> Self {
        let family = head.entries.iter().find_map(|entry| match entry {
            Entry::Address(addr, _) => Some(Family::of(*addr)),
            Entry::Mark(_, family) => *family,
        });
        Self { family, ..Self::default() }
    }

    /// Applies a statement.
    pub(super) fn apply(&mut self, block: &Block, faults: &mut Faults) {
        // In a virtual server `alpha` has no value.
        let alone = Block { words: vec![block.keyword().to_owned()], ..block.clone() };
        let for_timing = if block.keyword() == "alpha" { &alone } else { block };
        let known = self.timing.apply(for_timing, 1, faults)
            || self.apply_scheduling(block, faults)
            || self.apply_persistence(block, faults)
            || self.apply_sorry_server(block, faults)
            || self.apply_rest(block, faults);
        faults.line(block, known);
    }

    fn apply_rest(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match block.keyword() {
            "omega" => self.omega = true,
            "inhibit_on_failure" => self.inhibit_on_failure = true,
            "quorum" => self.quorum = faults.number(block, 1..=u32::MAX),
            "hysteresis" => {
                self.hysteresis = faults.number(block, 0..=u32::MAX).unwrap_or(self.hysteresis);
            }
            "quorum_up" => faults.script_once(block, &mut self.quorum_up),
            "quorum_down" => faults.script_once(block, &mut self.quorum_down),
            "weight" => set(&mut self.weight, faults.number(block, 1..=i32::MAX as u32)),
            "slow_start" => {
                set(&mut self.slow_start_seconds, faults.number(block, 1..=SLOW_START_MAX_SECONDS));
            }
            "ha_suspend" => self.ha_suspend = true,
            "virtualhost" => set(&mut self.host, faults.value(block).map(str::to_owned)),
            "smtp_alert" => set(&mut self.smtp_alert, faults.switch(block)),
            // Only SNMP uses it.
            "snmp_name" => {}
            _ => return false,
        }
        true
    }

    fn apply_sorry_server(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match (block.keyword(), &mut self.sorry) {
            ("sorry_server", sorry) => {
                if let Some(read) = SorryDraft::read(block, self.method, faults) {
                    *sorry = Some(read);
                }
            }
            ("sorry_server_inhibit", Some(sorry)) => sorry.inhibit = true,
            ("sorry_server_lvs_method", Some(sorry)) => set(&mut sorry.method, faults.method(block)),
            ("sorry_server_inhibit" | "sorry_server_lvs_method", None) => {
                faults.refuse(block, "it must follow `sorry_server`");
            }
            _ => return false,
        }
        true
    }

    fn apply_scheduling(&mut self, block: &Block, faults: &mut Faults) -> bool {
        let scheduler = self.scheduler.as_deref();
        match block.keyword() {
            "lvs_sched" | "lb_algo" => match faults.value(block) {
                Some(name) if name != "none" && xvs_sched::scheduler::names().any(|known| known == name) => {
                    self.scheduler = Some(name.to_owned());
                }
                Some(_) => faults.refuse(block, "no scheduler of this name"),
                None => {}
            },
            "lvs_method" | "lb_kind" => set(&mut self.method, faults.method(block)),
            "protocol" => match faults.value(block).map(str::to_ascii_uppercase).as_deref() {
                Some("TCP") => self.protocol = Some(Protocol::TCP),
                Some("UDP") => self.protocol = Some(Protocol::UDP),
                Some("SCTP") => self.protocol = Some(Protocol::SCTP),
                Some(_) => faults.refuse(block, "a protocol is TCP, UDP or SCTP"),
                None => {}
            },
            "ops" => self.one_packet = true,
            flag @ ("flag-1" | "flag-2" | "flag-3" | "sh-fallback" | "sh-port" | "mh-fallback"
            | "mh-port") => match scheduler_flags(flag, scheduler.unwrap_or_default()) {
                Ok(SchedulerFlags(bits)) => self.flags |= bits,
                Err(_) => faults.refuse(block, "it must follow the `lvs_sched` of its scheduler"),
            },
            "hashed" if matches!(scheduler, Some("sh" | "mh")) => {}
            "hashed" => faults.refuse(block, "it is for sh and mh only, where it has no effect"),
            "ip_family" => match faults.value(block) {
                Some("inet") => self.set_family(Family::V4, block, faults),
                Some("inet6") => self.set_family(Family::V6, block, faults),
                Some(_) => faults.refuse(block, "a family is inet or inet6"),
                None => {}
            },
            _ => return false,
        }
        true
    }

    fn set_family(&mut self, family: Family, block: &Block, faults: &mut Faults) {
        if *self.family.get_or_insert(family) != family {
            faults.refuse(block, "the virtual server is of the other family");
        }
    }

    fn apply_persistence(&mut self, block: &Block, faults: &mut Faults) -> bool {
        match block.keyword() {
            "persistence_timeout" => match block.arguments().first().map(String::as_str) {
                None => self.persistence_seconds = Some(PERSISTENCE_SECONDS),
                // Files for old versions of keepalived contain this.
                Some("0") => {
                    faults.refuse(block, "0 is not a time; a service without persistence has no such line")
                }
                Some(_) => {
                    set(&mut self.persistence_seconds, faults.number(block, 1..=PERSISTENCE_SECONDS_MAX));
                }
            },
            "persistence_granularity" => {
                if let Some(mask) = self.mask(block, faults) {
                    self.granularity = Some(mask);
                    self.persistence_seconds.get_or_insert(PERSISTENCE_SECONDS);
                }
            }
            "persistence_engine" => match faults.value(block) {
                Some("sip") => self.engine = Some("sip".to_owned()),
                Some(_) => faults.refuse(block, "the only persistence engine is sip"),
                None => {}
            },
            _ => return false,
        }
        true
    }

    /// Reads a granularity, in the family of the services if that is known.
    fn mask(&mut self, block: &Block, faults: &mut Faults) -> Option<Netmask> {
        let text = faults.value(block)?;
        let mask = match self.family {
            Some(Family::V4) => netmask_v4(text),
            Some(Family::V6) => prefix_length_v6(text),
            None => netmask_v4(text).or_else(|| prefix_length_v6(text)),
        };
        match mask {
            Some(Netmask::V6(_)) => self.family = Some(Family::V6),
            Some(Netmask::V4(_)) => self.family = Some(Family::V4),
            None => {
                faults.refuse(block, "expected a netmask for IPv4, or a prefix length from 1 to 128 for IPv6")
            }
        }
        mask
    }

    /// Corrects settings that do not fit the services, and warns about assumed defaults.
    pub(super) fn check(&mut self, head: &Head, block: &Block, faults: &mut Faults) {
        let has_marks = head.entries.iter().any(|entry| matches!(entry, Entry::Mark(..)));
        let has_addresses = head.entries.iter().any(|entry| matches!(entry, Entry::Address(..)));
        if self.ha_suspend && has_marks {
            faults.warn_of(block, "`ha_suspend` is for addresses, not for marks; it is left out");
            self.ha_suspend = false;
        }
        match self.protocol {
            None if has_addresses => faults.assume(block, "protocol", "UDP"),
            Some(_) if !has_addresses => faults.warn_of(block, "a mark has no protocol; it is left out"),
            _ => {}
        }
        if self.one_packet && has_addresses && !matches!(self.protocol, None | Some(Protocol::UDP)) {
            faults.warn_of(block, "`ops` is for UDP only; it is left out");
            self.one_packet = false;
        }
        let any_port = head.entries.iter().any(|entry| matches!(entry, Entry::Address(_, 0)));
        if any_port && self.persistence_seconds.is_none() {
            faults.warn_of(block, "port 0 needs persistence; a timeout of 360 s is assumed");
            self.persistence_seconds = Some(PERSISTENCE_SECONDS);
        }
        let scheduler = self.scheduler.as_deref().unwrap_or(DEFAULT_SCHEDULER);
        if self.slow_start_seconds.is_some() && xvs_sched::scheduler::full_share(scheduler).is_none() {
            let why = "has no `slow_start`, because addresses decide; it is left out";
            faults.warn_of(block, format!("{scheduler} {why}"));
            self.slow_start_seconds = None;
        }
        if self.scheduler.is_none() {
            faults.assume(block, "scheduler", DEFAULT_SCHEDULER);
        }
    }

    /// The services, without duplicates. `mark_family` is the family of marks that have none.
    pub(super) fn services(&self, head: &Head, mark_family: Family) -> Vec<(ServiceKey, ServiceOptions)> {
        let protocol = self.protocol.unwrap_or(Protocol::UDP);
        let mut known = HashSet::new();
        let keys = head.entries.iter().map(|entry| match *entry {
            Entry::Address(addr, port) => {
                ServiceKey::Address { protocol, endpoint: Endpoint::new(addr, port) }
            }
            Entry::Mark(mark, family) => ServiceKey::Mark { mark, family: family.unwrap_or(mark_family) },
        });
        keys.filter(|key| known.insert(*key)).map(|key| (key, self.options(key.family()))).collect()
    }

    fn options(&self, family: Family) -> ServiceOptions {
        ServiceOptions {
            scheduler: self.scheduler.clone().unwrap_or_else(|| DEFAULT_SCHEDULER.to_owned()),
            flags: SchedulerFlags(self.flags),
            persistence_timeout_seconds: self.persistence_seconds,
            netmask: self
                .granularity
                .filter(|mask| matches!(mask, Netmask::V4(_)) == (family == Family::V4))
                .unwrap_or(Netmask::host(family)),
            persistence_engine: self.engine.clone().filter(|_| self.persistence_seconds.is_some()),
            one_packet: self.one_packet,
            slow_start_seconds: self.slow_start_seconds,
            ..ServiceOptions::of(family)
        }
    }

    /// The quorum and the hysteresis, limited to the weights of these servers.
    pub(super) fn quorum(&self, servers: &[RealServer], block: &Block, faults: &mut Faults) -> (u32, u32) {
        let weight = servers.iter().map(|server| server.options.weight.0).fold(0, u32::saturating_add);
        let mut quorum = self.quorum.unwrap_or(1);
        if quorum > weight {
            faults.warn_of(
                block,
                format!("a quorum of {quorum} is above the sum of weights; it is lowered to {weight}"),
            );
            quorum = weight;
        }
        let hysteresis = self.hysteresis.min(quorum.saturating_sub(1));
        if hysteresis < self.hysteresis {
            let given = self.hysteresis;
            let text =
                format!("a hysteresis of {given} is not below the quorum; it is lowered to {hysteresis}");
            faults.warn_of(block, text);
        }
        if quorum.saturating_add(hysteresis) > weight {
            faults.warn_of(
                block,
                format!(
                    "quorum {quorum} and hysteresis {hysteresis} are above the sum of weights, {weight}: the quorum \
                     can never be gained"
                ),
            );
        }
        (quorum, hysteresis)
    }
}

fn netmask_v4(text: &str) -> Option<Netmask> {
    text.parse().ok().map(Netmask::V4)
}

fn prefix_length_v6(text: &str) -> Option<Netmask> {
    decimal(text).filter(|bits| (1..=128).contains(bits)).map(Netmask::V6)
}
