//! `virtual_server_group`: addresses and firewall marks with common real servers.
//!
//! Pure. Source: keepalived-behaviour, section 2.4.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::{Family, Prefix};

use crate::blocks::Block;
use crate::values::{Faults, decimal, port};

/// A service of a group or of a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// An address and a port; 0: any port.
    Address(IpAddr, u16),
    /// A firewall mark, and its family if one is configured.
    Mark(u32, Option<Family>),
}

/// The groups of a file, by name.
#[derive(Debug, Default)]
pub struct Groups(HashMap<String, Vec<Entry>>);

impl Groups {
    /// The services of a group, addresses first; `None` if there is no such group, or it is empty.
    pub fn find(&self, name: &str) -> Option<&[Entry]> {
        self.0.get(name).map(Vec::as_slice).filter(|entries| !entries.is_empty())
    }

    /// Reads a group.
    pub fn read(&mut self, block: &Block, faults: &mut Faults) {
        faults.block(block);
        let Some(name) = faults.argument(block) else { return };
        if self.0.contains_key(name) {
            return faults.warn(
                &block.place,
                format!("the group `{name}` is already defined; the first definition is used"),
            );
        }
        let mut entries = Vec::new();
        for line in block.statements() {
            faults.line(line, true);
            match entries_of(&line.words) {
                Ok(more) if entries.len() + more.len() > ENTRIES_MAX => {
                    faults.refuse(line, &format!("a group has at most {ENTRIES_MAX} addresses"));
                    faults.costs(Vec::new());
                }
                Ok(more) => entries.extend(more),
                Err(why) => {
                    faults.refuse(line, why);
                    faults.costs(Vec::new());
                }
            }
        }
        if is_ambiguous(&entries) {
            let why = "has addresses of both families and a mark without a family; it is left out";
            faults.warn(&block.place, format!("the group `{name}` {why}"));
            faults.costs(Vec::new());
            entries.clear();
        }
        entries.sort_by_key(|entry| matches!(entry, Entry::Mark(..)));
        self.0.insert(name.to_owned(), entries);
    }
}

/// Maximum number of services of a group; a mistyped prefix length could give millions.
const ENTRIES_MAX: usize = 65_536;

/// Whether the family of a mark does not follow from the addresses.
fn is_ambiguous(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| matches!(entry, Entry::Mark(_, None)))
        && entries.iter().any(|entry| matches!(entry, Entry::Address(addr, _) if addr.is_ipv4()))
        && entries.iter().any(|entry| matches!(entry, Entry::Address(addr, _) if addr.is_ipv6()))
}

fn entries_of(words: &[String]) -> Result<Vec<Entry>, &'static str> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    if let ["fwmark", mark, ref family @ ..] = words[..] {
        let family = match family {
            [] => None,
            ["inet", ..] => Some(Family::V4),
            ["inet6", ..] => Some(Family::V6),
            _ => return Err("a family is inet or inet6"),
        };
        let mark = decimal(mark).filter(|mark| *mark != 0).ok_or("a mark is a number from 1 on")?;
        return Ok(vec![Entry::Mark(mark, family)]);
    }
    let (range, port) = match words[..] {
        [range, ref behind @ ..] => (range, port(behind.first().copied())?),
        [] => return Err("no address"),
    };
    Ok(addresses(range)?.into_iter().map(|addr| Entry::Address(addr, port)).collect())
}

/// The addresses of one address, a range (last component or full address), or a network.
fn addresses(text: &str) -> Result<Vec<IpAddr>, &'static str> {
    let wrong = "not an address, a range of addresses or a network";
    if let Some((addr, bits)) = text.split_once('/') {
        let addr: IpAddr = addr.parse().map_err(|_| wrong)?;
        let prefix = bits.parse().ok().and_then(|bits| Prefix::new(addr, bits)).ok_or(wrong)?;
        if prefix.addr() != addr {
            return Err("an address of the network, not the network");
        }
        return match Prefix::host(addr).len() - prefix.len() {
            free @ 0..=16 => Ok(between(addr, 1 << free)),
            _ => Err("a network of more than 65,536 addresses"),
        };
    }
    let Some((first, last)) = text.split_once('-') else {
        return Ok(vec![text.parse().map_err(|_| wrong)?]);
    };
    let first: IpAddr = first.parse().map_err(|_| wrong)?;
    let end = last_of(first, last).ok_or(wrong)?;
    // An end that is only a last component must be higher than the first one; an end that is an address may be equal.
    let is_empty = end == first && last.parse::<IpAddr>().is_err();
    let count = match (first, end) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            u128::from(u32::from(last)).checked_sub(u32::from(first).into())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => u128::from(last).checked_sub(first.into()),
        _ => None,
    };
    match count.filter(|_| !is_empty).ok_or("a range that ends before it begins")? {
        more @ 0..65_536 => Ok(between(first, more as usize + 1)),
        _ => Err("a range of more than 65,536 addresses"),
    }
}

/// The end of a range: an address, or its last component.
fn last_of(first: IpAddr, text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| match first {
        IpAddr::V4(first) => {
            let [a, b, c, _] = first.octets();
            Some(Ipv4Addr::new(a, b, c, decimal(text)?).into())
        }
        IpAddr::V6(first) => {
            let mut parts = first.segments();
            parts[7] = u16::from_str_radix(text, 16).ok()?;
            Some(Ipv6Addr::from(parts).into())
        }
    })
}

fn between(first: IpAddr, count: usize) -> Vec<IpAddr> {
    (0..count)
        .map(|number| match first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(number as u32)).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(number as u128)).into(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::groups::*;

    #[test]
    fn an_entry_is_an_address_a_range_a_network_or_a_mark() {
        let read = |text: &str| {
            let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
            let shown = |entry: Entry| match entry {
                Entry::Address(addr, port) => format!("{addr} {port}"),
                Entry::Mark(mark, family) => format!("{mark} {family:?}"),
            };
            entries_of(&words).map(|entries| entries.into_iter().map(shown).collect::<Vec<_>>().join(", "))
        };
        for (text, entries) in [
            ("10.0.0.1", "10.0.0.1 0"),
            ("10.0.0.8-9 80", "10.0.0.8 80, 10.0.0.9 80"),
            ("10.0.0.8-10.0.0.8 80", "10.0.0.8 80"),
            ("10.0.0.255-10.0.1.1 80", "10.0.0.255 80, 10.0.1.0 80, 10.0.1.1 80"),
            ("10.0.1.0/31 443", "10.0.1.0 443, 10.0.1.1 443"),
            ("2001:db8::f-11 53", "2001:db8::f 53, 2001:db8::10 53, 2001:db8::11 53"),
            ("2001:db8::/127", "2001:db8:: 0, 2001:db8::1 0"),
            ("fwmark 5", "5 None"),
            ("fwmark 5 inet6", "5 Some(V6)"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(entries), "{text}");
        }
        for (text, why) in [
            ("10.0.0.1/31", "not the network"),
            ("10.0.0.9-8", "ends before"),
            ("10.0.0.8-8", "ends before"),
            ("10.0.0.0/8", "65,536"),
            ("10.0.0.0-10.1.0.0", "65,536"),
            ("fwmark 0", "mark"),
            ("host 80", "not an address"),
            ("10.0.0.1 http", "port"),
        ] {
            assert!(read(text).unwrap_err().contains(why), "{text}");
        }
    }
}
