//! Listings (`-L`), byte for byte as ipvsadm prints them, and as JSON.
//!
//! Services and destinations are sorted in ipvsadm's order, unless `--nosort` is given. Connections are not sorted:
//! each is printed when it arrives, so memory does not grow with their number.
//!
//! Source: the formats of ipvsadm 1.31, `tests/conformance/list-*` and `cli-*`.

use std::io;
use std::net::IpAddr;

use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::service::Netmask;
use xvs_model::config::service_option::inet_ntop;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::protocol::question::{self, ControlQuestion};
use xvs_model::report::connection::ConnectionRow;
use xvs_model::report::listing::{DestinationRow, Rates, ServiceRow, Stats};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::error::LineError;
use crate::grammar::{Columns, Engines, List, Names, Numbers, Order, Subject};
use crate::resolver::Resolver;
use crate::session::{Format, Session};
use crate::values::flag_names;

impl Session<'_> {
    /// Prints the listing of a `-L`.
    pub(super) fn list(&mut self, list: &List) -> Result<(), LineError> {
        match list.subject {
            Subject::All => {
                let rows = self.services(question::services(), list.order)?;
                if self.format == Format::Text {
                    writeln!(self.out, "IP Virtual Server version 1.2.1 (size={TABLE_SIZE})")?;
                }
                self.table(list, &rows)
            }
            Subject::Service(key) => {
                let rows = self.services(question::service(key), list.order)?;
                self.table(list, &rows)
            }
            Subject::Connections(engines) => self.connections(list.names, engines),
            Subject::Timeouts => {
                let timeouts = self.ask(question::timeouts())?;
                if self.format == Format::Json {
                    return self.json(&timeouts);
                }
                let Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds } = timeouts;
                Ok(writeln!(
                    self.out,
                    "Timeout (tcp tcpfin udp): {tcp_seconds} {tcp_fin_seconds} {udp_seconds}"
                )?)
            }
            Subject::Daemons => {
                let daemons = self.ask(question::daemons())?;
                if self.format == Format::Json {
                    return self.json(&daemons);
                }
                Ok(self.out.write_all(daemons.iter().map(daemon_line).collect::<String>().as_bytes())?)
            }
        }
    }

    /// Requests services and sorts them.
    pub(super) fn services(
        &mut self,
        question: ControlQuestion<Vec<ServiceRow>>,
        order: Order,
    ) -> Result<Vec<ServiceRow>, LineError> {
        let mut rows = self.ask(question)?;
        if order == Order::Sorted {
            for row in &mut rows {
                let destinations = std::mem::take(&mut row.destinations);
                row.destinations =
                    merge_sort(destinations, &|a, b| compare_endpoints(a.endpoint, b.endpoint));
            }
            rows = merge_sort(rows, &|a, b| compare_services(&a.key, &b.key));
        }
        Ok(rows)
    }

    fn ask<T>(&mut self, question: ControlQuestion<T>) -> Result<T, LineError> {
        question.ask(self.director).map_err(|failure| LineError::listing(&failure))
    }

    fn json(&mut self, value: &impl serde::Serialize) -> Result<(), LineError> {
        serde_json::to_writer(&mut *self.out, value).map_err(io::Error::from)?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn table(&mut self, list: &List, rows: &[ServiceRow]) -> Result<(), LineError> {
        if self.format == Format::Json {
            return self.json(&rows);
        }
        let names = Naming::of(list.names, self.resolver);
        self.out.write_all(title(list.columns).as_bytes())?;
        for row in rows {
            self.out.write_all(service_line(row, list, &names).as_bytes())?;
            for dest in &row.destinations {
                self.out.write_all(destination_line(&row.key, dest, list, &names).as_bytes())?;
            }
        }
        Ok(())
    }

    fn connections(&mut self, names: Names, engines: Engines) -> Result<(), LineError> {
        let (format, out) = (self.format, &mut *self.out);
        let names = Naming::of(names, self.resolver);
        let mut head = Some(match format {
            Format::Text => connections_title(engines),
            Format::Json => "[".to_owned(),
        });
        let mut separator = "\n";
        let list_row = &mut |row: ConnectionRow| {
            // The title waits for the first row: a refused listing prints none.
            if let Some(head) = head.take() {
                out.write_all(head.as_bytes())?;
            }
            match format {
                Format::Text => out.write_all(connection_line(&row, engines, &names).as_bytes()),
                Format::Json => {
                    out.write_all(separator.as_bytes())?;
                    separator = ",\n";
                    serde_json::to_writer(&mut *out, &row).map_err(io::Error::from)
                }
            }
        };
        self.director.connections(list_row).map_err(|failure| LineError::listing(&failure))?;
        out.write_all(head.take().unwrap_or_default().as_bytes())?;
        if format == Format::Json {
            out.write_all(b"\n]\n")?;
        }
        Ok(())
    }
}

/// The representation of addresses and ports: names from a resolver, or numbers.
pub(super) struct Naming<'a>(Option<&'a dyn Resolver>);

impl<'a> Naming<'a> {
    pub(super) const NUMERIC: Self = Self(None);

    pub(super) fn of(names: Names, resolver: &'a dyn Resolver) -> Self {
        Self(Some(resolver).filter(|_| names == Names::LookedUp))
    }

    /// An endpoint. The port's name is looked up for `protocol`; for `None` the port is printed as a number.
    pub(super) fn endpoint(&self, endpoint: Endpoint, protocol: Option<Protocol>) -> String {
        let host = self.0.and_then(|resolver| resolver.host_name(endpoint.addr));
        let port = self
            .0
            .zip(protocol)
            .filter(|_| endpoint.port != 0)
            .and_then(|(resolver, protocol)| resolver.port_name(endpoint.port, protocol))
            .unwrap_or_else(|| endpoint.port.to_string());
        match endpoint.addr {
            IpAddr::V4(addr) => format!("{}:{port}", host.unwrap_or_else(|| addr.to_string())),
            IpAddr::V6(addr) => format!("[{}]:{port}", host.unwrap_or_else(|| inet_ntop(addr))),
        }
    }

    /// A destination of this service. A service of a firewall mark has no protocol, so its ports are numbers.
    pub(super) fn destination(&self, service: &ServiceKey, endpoint: Endpoint) -> String {
        match service {
            ServiceKey::Address { protocol, .. } => self.endpoint(endpoint, Some(*protocol)),
            ServiceKey::Mark { .. } => self.endpoint(endpoint, None),
        }
    }
}

fn title(columns: Columns) -> String {
    let behind = match columns {
        Columns::Plain => {
            " Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn"
        }
        Columns::Tunnels => {
            " Scheduler Flags\n  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn"
        }
        Columns::Stats => "               Conns   InPkts  OutPkts  InBytes OutBytes\n  -> RemoteAddress:Port",
        Columns::Rates => "                 CPS    InPPS   OutPPS    InBPS   OutBPS\n  -> RemoteAddress:Port",
        Columns::Thresholds => {
            "            Uthreshold Lthreshold ActiveConn InActConn \n  -> RemoteAddress:Port"
        }
        Columns::Persistent => {
            "            Weight    PersistConn ActiveConn InActConn \n  -> RemoteAddress:Port"
        }
    };
    format!("Prot LocalAddress:Port{behind}\n")
}

fn service_line(row: &ServiceRow, list: &List, names: &Naming<'_>) -> String {
    let service = match row.key {
        ServiceKey::Address { protocol, endpoint } => {
            format!("{protocol:<4} {}", names.endpoint(endpoint, Some(protocol)))
        }
        // ipvsadm prints marks as signed numbers.
        ServiceKey::Mark { mark, family: Family::V4 } => format!("FWM  {}", mark as i32),
        ServiceKey::Mark { mark, family: Family::V6 } => format!("FWM  {} IPv6", mark as i32),
    };
    let name = cut(service, row.key.family(), 33);
    match list.columns {
        Columns::Stats => format!("{name:<33}{}\n", stats(&row.stats, list.numbers)),
        Columns::Rates => {
            let Rates { connections, in_packets, out_packets, in_bytes, out_bytes } = row.rates;
            let rates = [connections, in_packets, out_packets, in_bytes, out_bytes];
            format!("{name:<33}{}\n", rates.map(|number| large(number, list.numbers)).concat())
        }
        _ => format!("{name} {}\n", service_options(row)),
    }
}

/// The scheduler and the options on a service's line.
fn service_options(row: &ServiceRow) -> String {
    let options = &row.options;
    let mut text = options.scheduler.clone();
    if options.flags.0 != 0 {
        text += &format!(" ({})", flag_names(options.flags, &options.scheduler));
    }
    if let Some(seconds) = options.persistence_timeout_seconds {
        text += &format!(" persistent {seconds}");
        if options.netmask != Netmask::host(row.key.family()) {
            text += &format!(" mask {}", netmask(options.netmask));
        }
        if let Some(engine) = &options.persistence_engine {
            text += &format!(" pe {engine}");
        }
    }
    if options.one_packet {
        text += " ops";
    }
    text
}

/// A netmask as the argument of `-M`.
pub(super) fn netmask(mask: Netmask) -> String {
    match mask {
        Netmask::V4(mask) => mask.to_string(),
        Netmask::V6(bits) => bits.to_string(),
    }
}

fn destination_line(service: &ServiceKey, row: &DestinationRow, list: &List, names: &Naming<'_>) -> String {
    let name = cut(names.destination(service, row.endpoint), service.family(), 28);
    let method = row.options.method.listed();
    let (weight, active, inactive) = (row.weight_in_force.0, row.active, row.inactive);
    let columns = match list.columns {
        Columns::Plain => format!(" {method:<7} {weight:<6} {active:<10} {inactive:<10}"),
        Columns::Tunnels => {
            format!(" {method:<7} {:<13} {weight:<6} {active:<10} {inactive:<10}", tunnel_info(row))
        }
        Columns::Stats => stats(&row.stats, list.numbers),
        Columns::Rates => {
            let Rates { connections, in_packets, out_packets, in_bytes, out_bytes } = row.rates;
            // ipvsadm scales only the byte rates of a destination.
            let bytes = [in_bytes, out_bytes].map(|number| large(number, list.numbers)).concat();
            format!(" {connections:>8} {in_packets:>8} {out_packets:>8}{bytes}")
        }
        Columns::Thresholds => {
            let DestinationOptions { upper_threshold, lower_threshold, .. } = row.options;
            format!(" {upper_threshold:<10} {lower_threshold:<10} {active:<10} {inactive:<10}")
        }
        Columns::Persistent => {
            format!(" {weight:<9} {:<11} {active:<10} {inactive:<10}", row.persistent)
        }
    };
    format!("  -> {name:<28}{columns}\n")
}

fn tunnel_info(row: &DestinationRow) -> String {
    if row.options.method != ForwardingMethod::Tunnel {
        return "n/a".to_owned();
    }
    let sums = |checksum| match checksum {
        TunnelChecksum::Without => "-c",
        TunnelChecksum::Full => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    let text = match row.options.tunnel {
        Tunnel::Ipip => "ipip".to_owned(),
        Tunnel::Gue { port, checksum } => format!("gue:{port}:{}", sums(checksum)),
        Tunnel::Gre { checksum } => format!("gre:{}", sums(checksum)),
    };
    text.chars().take(15).collect()
}

/// A name truncated to the width of its column. Names of IPv6 services are not truncated and shift the columns after
/// them.
fn cut(name: String, family: Family, width: usize) -> String {
    match family {
        Family::V4 => name.chars().take(width).collect(),
        Family::V6 => name,
    }
}

fn stats(stats: &Stats, numbers: Numbers) -> String {
    [stats.connections, stats.in_packets, stats.out_packets, stats.in_bytes, stats.out_bytes]
        .map(|number| large(number, numbers))
        .concat()
}

/// A number, right-aligned in nine columns, scaled by a power of 1000 from 100,000,000 on.
fn large(number: u64, numbers: Numbers) -> String {
    if numbers == Numbers::Exact || number < 100_000_000 {
        return format!(" {number:>8}");
    }
    let (unit, letter) = if number < 1_000_000_000 {
        (1_000, 'K')
    } else if number < 100_000_000_000 {
        (1_000_000, 'M')
    } else if number < 100_000_000_000_000 {
        (1_000_000_000, 'G')
    } else {
        (1_000_000_000_000, 'T')
    };
    format!("{:>8}{letter}", number / unit)
}

fn connections_title(engines: Engines) -> String {
    let last = match engines {
        Engines::Hidden => "destination",
        Engines::Shown => "destination        pe name          pe_data",
    };
    format!("IPVS connection entries\npro expire state       source             virtual            {last}\n")
}

fn connection_line(row: &ConnectionRow, engines: Engines, names: &Naming<'_>) -> String {
    let named = (row.protocol != Protocol::IP).then_some(row.protocol);
    let expire = format!("{:02}:{:02}", row.expires_seconds / 60, row.expires_seconds % 60);
    let [client, service, dest] =
        [row.client, row.virtual_endpoint, row.dest].map(|endpoint| names.endpoint(endpoint, named));
    let start = format!("{:<3} {expire:<6} {:<11} {client:<18} {service:<18}", row.protocol, row.state);
    match (&row.engine, engines) {
        (Some(engine), Engines::Shown) => format!("{start} {dest:<16} {:<18} {}\n", engine.name, engine.data),
        _ => format!("{start} {dest}\n"),
    }
}

fn daemon_line(daemon: &SyncDaemon) -> String {
    let SyncDaemon { role, interface, sync_id, max_len_bytes, group, port, ttl, peers } = daemon;
    let to = if peers.is_empty() { format!("group={group}") } else { format!("peers={}", joined(peers)) };
    format!(
        "{} sync daemon (mcast={interface}, syncid={sync_id}, maxlen={max_len_bytes}, {to}, port={port}, ttl={ttl})\n",
        role.name()
    )
}

/// The argument of `--sync-peers`.
pub(crate) fn joined(peers: &[IpAddr]) -> String {
    peers.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// The order of two services: negative if `a` comes first, positive if `b` does.
pub(super) fn compare_services(a: &ServiceKey, b: &ServiceKey) -> i64 {
    let [(mark_a, family_a, protocol_a, endpoint_a), (mark_b, family_b, protocol_b, endpoint_b)] = [*a, *b]
        .map(|key| match key {
            ServiceKey::Address { protocol, endpoint } => (0, endpoint.family(), protocol.0, Some(endpoint)),
            ServiceKey::Mark { mark, family } => (mark, family, Protocol::TCP.0, None),
        });
    let first = [
        signed_difference(mark_a, mark_b),
        family_a as i64 - family_b as i64,
        i64::from(protocol_a) - i64::from(protocol_b),
    ];
    first.into_iter().find(|difference| *difference != 0).unwrap_or_else(|| match (endpoint_a, endpoint_b) {
        (Some(a), Some(b)) => compare_endpoints(a, b),
        _ => 0,
    })
}

/// The order of two endpoints, like [`compare_services`].
pub(super) fn compare_endpoints(a: Endpoint, b: Endpoint) -> i64 {
    let [words_a, words_b] = [a, b].map(|endpoint| match endpoint.addr {
        IpAddr::V4(addr) => [u32::from(addr), 0, 0, 0],
        IpAddr::V6(addr) => {
            let bits = u128::from(addr);
            [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
        }
    });
    words_a
        .into_iter()
        .zip(words_b)
        .map(|(a, b)| signed_difference(a, b))
        .find(|difference| *difference != 0)
        .unwrap_or(i64::from(a.port) - i64::from(b.port))
}

/// The difference as a signed 32-bit number, as ipvsadm computes it. For numbers more than 2^31 apart its sign is
/// wrong, so the order is not transitive. Scripts rely on the resulting order.
fn signed_difference(a: u32, b: u32) -> i64 {
    i64::from(a.wrapping_sub(b) as i32)
}

/// Merge sort as in the C library's qsort(3). With an order that is not transitive the result depends on the
/// algorithm, and the sort of Rust's standard library may panic.
pub(super) fn merge_sort<T>(mut items: Vec<T>, compare: &impl Fn(&T, &T) -> i64) -> Vec<T> {
    if items.len() < 2 {
        return items;
    }
    let mut sorted = Vec::with_capacity(items.len());
    let mut right = merge_sort(items.split_off(items.len() / 2), compare).into_iter().peekable();
    let mut left = merge_sort(items, compare).into_iter().peekable();
    loop {
        let next = match (left.peek(), right.peek()) {
            (None, None) => return sorted,
            (Some(a), Some(b)) if compare(a, b) <= 0 => left.next(),
            (Some(_), None) => left.next(),
            _ => right.next(),
        };
        sorted.extend(next);
    }
}

/// The size of the connection table in the first line of a listing, the default of IPVS; scripts do not read it.
const TABLE_SIZE: u32 = 4096;

#[cfg(test)]
mod tests {
    use crate::listing::*;

    #[test]
    fn large_numbers_are_scaled_to_their_column_and_exact_ones_keep_every_digit() {
        for (number, scaled, exact) in [
            (123, "      123", "      123"),
            (99_999_999, " 99999999", " 99999999"),
            (100_000_000, "  100000K", " 100000000"),
            (1_234_567_890, "    1234M", " 1234567890"),
            (123_456_789_012, "     123G", " 123456789012"),
            (123_456_789_012_345, "     123T", " 123456789012345"),
        ] {
            assert_eq!(large(number, Numbers::Scaled), scaled);
            assert_eq!(large(number, Numbers::Exact), exact);
        }
    }

    #[test]
    fn addresses_far_apart_sort_by_their_signed_difference() {
        let sorted = |texts: &[&str]| {
            let endpoints: Vec<Endpoint> =
                texts.iter().map(|text| Endpoint::new(text.parse::<IpAddr>().unwrap(), 80)).collect();
            let endpoints = merge_sort(endpoints, &|a, b| compare_endpoints(*a, *b));
            endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(sorted(&["1.2.3.4", "192.168.100.200"]), ["192.168.100.200", "1.2.3.4"]);
        assert_eq!(sorted(&["10.0.0.10", "10.0.0.9", "10.0.0.8"]), ["10.0.0.8", "10.0.0.9", "10.0.0.10"]);
        assert_eq!(
            sorted(&["2001:db8::1", "::1", "fd00:2::12"]),
            ["fd00:2::12", "::1", "2001:db8::1"],
            "each 32-bit word is compared by itself"
        );
    }

    #[test]
    fn marks_from_2_to_the_31_on_print_and_sort_as_negative() {
        let mark = |mark| ServiceKey::Mark { mark, family: Family::V4 };
        let service = ServiceKey::tcp(Endpoint::new([192, 0, 2, 1], 80));
        assert!(compare_services(&mark(u32::MAX), &service) < 0);
        assert!(compare_services(&mark(1), &service) > 0);
    }
}
