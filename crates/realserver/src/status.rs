//! What is up on a real server, and whether it still is as it has to be.
//!
//! Each reading compares what the record says was done with what the kernel has now.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::{fmt, io};

use serde::Serialize;

use crate::decapsulation::Occupant;
use crate::error::{RealserverError, failed};
use crate::interfaces::{Interfaces, TUNL0};
use crate::method::Method;
use crate::record::{Decapsulation, Record, Served};
use crate::{decapsulation, sysctl};

/// A virtual address that is up.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The virtual address.
    pub vip: IpAddr,
    /// How the director's packets come.
    pub method: Method,
    /// The interface that they come in by.
    pub dev: String,
    /// The interface that has the virtual address.
    pub address_on: String,
    /// Who takes off the outer headers, for tunnels.
    pub decapsulation: Option<String>,
    /// Which ones.
    pub takes: Option<String>,
    /// What the XDP program has done on its interface, for all virtual addresses there.
    pub counters: Option<Counters>,
    /// The settings that were changed for it.
    pub settings: Vec<SettingStatus>,
    /// What is not as it has to be; `up` restores it, or says what to do first.
    pub problems: Vec<String>,
}

/// What the XDP program has done since it was put on its interface, or changed by `up` or `down`; in packets.
#[derive(Debug, Serialize)]
pub struct Counters {
    /// IPv4 and IPv6 taken out of IP.
    pub ip: u64,
    /// Taken out of GRE.
    pub gre: u64,
    /// Taken out of GUE.
    pub gue: u64,
    /// Of a tunnel to this machine, not to a virtual address or not understood: left to the kernel.
    pub left_to_kernel: u64,
    /// Dropped: the checksum of GRE or UDP was wrong.
    pub bad_checksum: u64,
    /// Dropped: they met congestion and the packet inside cannot say so (RFC 6040).
    pub congested: u64,
}

impl From<decapsulation::Counters> for Counters {
    fn from(counted: decapsulation::Counters) -> Self {
        let decapsulation::Counters { ip, gre, gue, left_to_kernel, bad_checksum, congested } = counted;
        Self { ip, gre, gue, left_to_kernel, bad_checksum, congested }
    }
}

/// A setting that was changed.
#[derive(Debug, Serialize)]
pub struct SettingStatus {
    /// As sysctl(8) names it.
    pub name: String,
    /// What it is now; none if it went with its interface.
    pub value: Option<i32>,
    /// What it was, and will be again.
    pub found: i32,
    /// What it is for.
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
        if let Some(other) = interfaces.other_with(self.vip, &served.holder) {
            self.problems
                .push(RealserverError::OnTheWire { vip: self.vip, dev: other.name.clone() }.to_string());
        }
    }

    fn check_settings(&mut self, served: &Served, record: &Record) {
        for place in &served.settings {
            let Some(setting) = record.settings.get(place) else { continue };
            let value = sysctl::read(place).ok();
            let name = sysctl::name(place);
            if let Some(value) = value.filter(|&value| value < setting.set) {
                self.problems.push(format!("{name} is {value}, and has to be {}", setting.set));
            }
            let purpose = purpose(place);
            self.settings.push(SettingStatus { name, value, found: setting.found, purpose });
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
        let vip = self.vip;
        let refused = |error| RealserverError::Decap { vip, error };
        match decapsulation::occupant(link.ifindex).map_err(refused)? {
            Occupant::Ours(mode) => {
                self.decapsulation = Some(format!("an XDP program on {} ({mode})", served.dev));
                self.counters = Some(decapsulation::counters(link.ifindex).map_err(refused)?.into());
            }
            Occupant::Nobody => self.problems.push(format!("the XDP program is gone from {}", served.dev)),
            Occupant::Foreign(id) => {
                self.problems.push(format!("{} has another XDP program (id {id})", served.dev));
            }
        }
        for addr in current.difference(configured) {
            self.problems.push(format!("the address {addr} is new; tunnels to it are not decapsulated"));
        }
        Ok(())
    }

    /// Decapsulated packets come from clients that the kernel may expect elsewhere.
    fn check_source(&mut self, dev: &str) {
        match sysctl::checks_strictly(dev).map_err(failed(|| format!("reading rp_filter of {dev}"))) {
            Ok(true) => self.problems.push(format!(
                "rp_filter of {dev} is strict: requests of clients whose replies leave elsewhere are dropped"
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
                "  packets dropped: {bad_checksum} wrong checksum, {congested} congestion unreportable"
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
            let (vip, method, dev) = (self.vip, self.method, &self.dev);
            writeln!(f, "  mend it: xvs realserver up --vip {vip} --method {method} --dev {dev}")?;
        }
        Ok(())
    }
}

fn purpose(place: &str) -> &'static str {
    match place.rsplit('/').next() {
        Some("arp_ignore") => "no ARP answer for the virtual address",
        Some("arp_announce") => "no ARP question in the name of the virtual address",
        _ => "decapsulated requests are taken also if their replies leave elsewhere",
    }
}

/// The addresses that the director may know this machine by: all that are not virtual.
pub(crate) fn outer_dests(interfaces: &Interfaces, record: &Record) -> BTreeSet<IpAddr> {
    interfaces.reachable().filter(|addr| !record.virtuals.contains_key(addr)).collect()
}
