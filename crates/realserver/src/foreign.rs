//! Possible virtual addresses that another program has set up: a script, keepalived, systemd-networkd.
//!
//! The record does not contain these addresses, so `xvs realserver` knows neither their method nor their interface,
//! only their ARP state.

use std::fmt;
use std::net::IpAddr;

use xvs_proto::Prefix;

use crate::interfaces::Interfaces;
use crate::record::Record;
use crate::sysctl;

/// An address on a link without neighbours (loopback, dummy, tunnel) that `xvs realserver up` has not set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The address.
    pub addr: IpAddr,
    /// The interface that has the address.
    pub on: String,
    /// The ARP settings that are too low for a virtual address, as "name is value, not minimum".
    pub low: Vec<String>,
}

impl Foreign {
    /// The addresses with a host prefix, except loopback addresses and those in the record. Links that resolve
    /// neighbours are left out: on such a link the host's own address may have a host prefix, from DHCPv6 or in a
    /// cloud.
    pub(crate) fn all(interfaces: &Interfaces, record: &Record) -> Vec<Self> {
        let reachable: Vec<_> = interfaces.reachable().collect();
        let mut all = Vec::new();
        for link in interfaces
            .names()
            .into_iter()
            .filter_map(|name| interfaces.link(name))
            .filter(|link| !link.resolves)
        {
            for &(addr, len) in &link.addresses {
                if len == Prefix::host(addr).len()
                    && reachable.contains(&addr)
                    && !record.virtuals.contains_key(&addr)
                {
                    all.push(Self { addr, on: link.name.clone(), low: low(interfaces, addr) });
                }
            }
        }
        all
    }
}

/// The ARP settings of the interface of the default route that are too low for this address.
fn low(interfaces: &Interfaces, addr: IpAddr) -> Vec<String> {
    let Some(dev) = interfaces.default_dev(addr).filter(|_| addr.is_ipv4()) else { return Vec::new() };
    // The kernel uses the higher of the values for `all` and for the interface.
    let both = sysctl::quiet_arp(dev);
    let (of_all, of_dev) = both.split_at(both.len() / 2);
    of_all
        .iter()
        .zip(of_dev)
        .map(|(all, dev)| {
            let [all, of_dev] = [&all.key, &dev.key].map(|key| sysctl::read(key).unwrap_or(0));
            (all.max(of_dev), dev)
        })
        .filter(|(value, minimum)| *value < minimum.at_least)
        .map(|(value, dev)| format!("{} is {value}, not {}", sysctl::name(&dev.key), dev.at_least))
        .collect()
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addr, on, low } = self;
        write!(f, "{addr} is on {on}, not set up by `xvs realserver`")?;
        if !low.is_empty() {
            write!(f, "; as a virtual address it answers ARP: {}", low.join(", "))?;
        }
        match on.as_str() {
            "lo" => write!(f, "; `xvs realserver up --vip {addr}` completes its settings"),
            _ => Ok(()),
        }
    }
}
