//! The state of a real server: its virtual addresses, and differences from the record of `up`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::{fmt, io};

use serde::Serialize;

use crate::decapsulation::AttachedProgram;
pub use crate::decapsulation::Counters;
use crate::error::{RealserverError, failed};
use crate::interfaces::{Interfaces, TUNL0};
use crate::method::Method;
use crate::record::{Decapsulation, Record, Served};
use crate::{decapsulation, sysctl};

/// A virtual address that is up.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// The virtual address.
    pub vip: IpAddr,
    /// How the director's packets arrive.
    pub method: Method,
    /// The interface that receives these packets.
    pub dev: String,
    /// The interface that has the virtual address.
    pub address_on: String,
    /// What removes the outer headers of tunnels; `None`: nothing does.
    pub decapsulation: Option<String>,
    /// The kinds of tunnels that it accepts; `None`: the method is `dr`.
    pub takes: Option<String>,
    /// The counters of the XDP program that decapsulates, for all virtual addresses of the interface, since it was
    /// installed or changed; `None`: there is none.
    pub counters: Option<Counters>,
    /// The sysctls that were changed for it.
    pub settings: Vec<SettingStatus>,
    /// What is not as it has to be; `xvs realserver up` repairs it, or its error says what to do first.
    pub problems: Vec<String>,
}

/// A setting that `up` changed.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SettingStatus {
    /// The name of the sysctl.
    pub name: String,
    /// The value now; `None`: its interface is gone.
    pub value: Option<i32>,
    /// The value before, which `xvs realserver down` restores.
    pub found: i32,
    /// Why it was changed.
    pub purpose: &'static str,
}

impl Status {
    pub(crate) fn of(
        vip: IpAddr,
        served: &Served,
        record: &Record,
        interfaces: &Interfaces,
    ) -> Result<Self, RealserverError> {
        let mut status = Self {
            vip,
            method: served.method,
            dev: served.dev.clone(),
            address_on: served.holder.clone(),
            decapsulation: None,
            takes: None,
            counters: None,
            settings: Vec::new(),
            problems: Vec::new(),
        };
        status.check_interfaces(served, interfaces);
        status.check_settings(served, record);
        match &served.decapsulation {
            None => {}
            Some(Decapsulation::Tunl0) => {
                status.decapsulation = Some("the kernel's tunl0".to_owned());
                status.takes = Some("IPv4 in IPv4".to_owned());
                status.check_source(TUNL0);
            }
            Some(Decapsulation::Xdp { outer_dests: configured, gue_port }) => {
                status.takes = Some(format!(
                    "IP in IP, GRE, GUE to UDP port {gue_port}; IPv4 and IPv6 over IPv4 and IPv6"
                ));
                let current = outer_dests(interfaces, record);
                status.check_program(served, configured, &current, interfaces)?;
                if vip.is_ipv4() {
                    status.check_source(&served.dev);
                }
            }
        }
        Ok(status)
    }

    fn check_interfaces(&mut self, served: &Served, interfaces: &Interfaces) {
        if interfaces.link(&served.dev).is_none() {
            self.problems.push(format!("the interface {} is gone", served.dev));
        }
        match interfaces.link(&served.holder) {
            None => self.problems.push(format!("the interface {} is gone", served.holder)),
            Some(link) if !link.addresses.iter().any(|&(addr, _)| addr == self.vip) => {
                self.problems.push(format!("{} does not have the address any more", served.holder));
            }
            Some(link) if !link.up => self.problems.push(format!("the interface {} is down", served.holder)),
            Some(_) => {}
        }
        if let Some(other) = interfaces.other_link_with(self.vip, &[&served.holder]) {
            self.problems
                .push(RealserverError::AnswersArp { vip: self.vip, dev: other.name.clone() }.to_string());
        }
    }

    fn check_settings(&mut self, served: &Served, record: &Record) {
        for key in &served.settings {
            let Some(setting) = record.settings.get(key) else { continue };
            let value = sysctl::read(key).ok();
            let name = sysctl::name(key);
            if let Some(value) = value.filter(|&value| value < setting.set) {
                self.problems.push(format!("{name} is {value} and must be {}", setting.set));
            }
            self.settings.push(SettingStatus { name, value, found: setting.found, purpose: purpose(key) });
        }
    }

    fn check_program(
        &mut self,
        served: &Served,
        configured: &BTreeSet<IpAddr>,
        current: &BTreeSet<IpAddr>,
        interfaces: &Interfaces,
    ) -> Result<(), RealserverError> {
        let Some(link) = interfaces.link(&served.dev) else { return Ok(()) };
        let program = decapsulation::attached_program(link.ifindex);
        match program.map_err(|error| RealserverError::Decap { vip: self.vip, error })? {
            AttachedProgram::Decapsulation(mode) => {
                self.decapsulation = Some(format!("an XDP program on {} ({mode})", served.dev));
                self.counters = decapsulation::counters(link.ifindex)
                    .map(Some)
                    .map_err(|error| RealserverError::Decap { vip: self.vip, error })?;
            }
            AttachedProgram::None => {
                self.problems.push(format!("the XDP program is gone from {}", served.dev))
            }
            AttachedProgram::Other(id) => {
                self.problems.push(format!("{} has another XDP program (id {id})", served.dev));
            }
        }
        for addr in current.difference(configured) {
            self.problems.push(format!("the address {addr} is new; tunnels to it are not decapsulated"));
        }
        Ok(())
    }

    /// The kernel may route to the client of a decapsulated packet through another interface; a strict check drops the
    /// packet.
    fn check_source(&mut self, dev: &str) {
        match sysctl::checks_strictly(dev).map_err(failed(|| format!("reading rp_filter of {dev}"))) {
            Ok(true) => self.problems.push(format!(
                "rp_filter of {dev} is strict: requests are dropped if their replies leave by another interface"
            )),
            Ok(false) => {}
            Err(RealserverError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.problems.is_empty() { "up" } else { "up, with problems" };
        writeln!(f, "{}  {state}  method {}  interface {}", self.vip, self.method, self.dev)?;
        writeln!(f, "  address: on {}", self.address_on)?;
        if let Some(by) = &self.decapsulation {
            writeln!(f, "  decapsulation: {by}")?;
        }
        if let Some(takes) = &self.takes {
            writeln!(f, "  takes: {takes}")?;
        }
        if let Some(Counters { ip, gre, gue, left_to_kernel, bad_checksum, congested }) = &self.counters {
            writeln!(
                f,
                "  packets taken: {ip} IP in IP, {gre} GRE, {gue} GUE; left to the kernel: {left_to_kernel}"
            )?;
            writeln!(
                f,
                "  packets dropped: {bad_checksum} wrong checksum, {congested} congestion mark not representable"
            )?;
        }
        for SettingStatus { name, value, found, purpose } in &self.settings {
            let value = value.map_or("gone".to_owned(), |value| value.to_string());
            writeln!(f, "  {name}: {value} (was {found}): {purpose}")?;
        }
        for problem in &self.problems {
            writeln!(f, "  problem: {problem}")?;
        }
        if !self.problems.is_empty() {
            let Self { vip, method, dev, .. } = self;
            writeln!(f, "  fix: xvs realserver up --vip {vip} --method {method} --dev {dev}")?;
        }
        Ok(())
    }
}

fn purpose(key: &str) -> &'static str {
    match key.rsplit('/').next() {
        Some("arp_ignore") => "no ARP replies for the virtual address",
        Some("arp_announce") => "no ARP requests with the virtual address as sender",
        _ => "decapsulated requests are accepted even if their replies leave by another interface",
    }
}

/// The addresses that a director may use for this machine: all except virtual ones.
pub(crate) fn outer_dests(interfaces: &Interfaces, record: &Record) -> BTreeSet<IpAddr> {
    interfaces.reachable().filter(|addr| !record.virtuals.contains_key(addr)).collect()
}
