//! Compares the parsing of unusual arguments with that of ipvsadm.
//!
//! `kernel/values.txt` has exit code, standard error and the requested change of some thousand command lines; its
//! comments describe its lines. `scripts/record-ipvsadm` recorded it.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::net::{IpAddr, Ipv4Addr};

use crate::listener::Listener;
use xvs_ipvsadm::output;
use xvs_ipvsadm::resolver::FixedNames;
use xvs_model::config::command::Command;
use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::service::{Netmask, ServiceOptions};
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::{Object, Rule};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

/// A change as `kernel.c` prints it: the number of the kernel's command, then its arguments.
fn recorded(command: &Command) -> String {
    match command {
        Command::Add(Rule::Service { key, options }) => {
            format!("1{}{}", service(key), service_options(key, options))
        }
        Command::EditService { key, options } => {
            format!("2{}{}", service(key), service_options(key, options))
        }
        Command::Delete(Object::Service(key)) => format!("3{}", service(key)),
        Command::Add(Rule::Destination { service: of, endpoint: at, options }) => {
            format!("5{}{}{}", service(of), endpoint(*at), destination_options(options))
        }
        Command::EditDestination { service: of, endpoint: at, options } => {
            format!("6{}{}{}", service(of), endpoint(*at), destination_options(options))
        }
        Command::Delete(Object::Destination { service: of, endpoint: at }) => {
            format!("7{}{}", service(of), endpoint(*at))
        }
        Command::Add(Rule::Daemon(daemon)) => format!(
            "9 {} {} {} {} {} {}",
            role(daemon.role),
            daemon.interface,
            daemon.sync_id,
            daemon.max_len_bytes,
            daemon.port,
            daemon.ttl
        ),
        Command::Delete(Object::Daemon(of)) => format!("10 {}", role(*of)),
        Command::Add(Rule::Timeouts(Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds })) => {
            format!("12 {tcp_seconds} {tcp_fin_seconds} {udp_seconds}")
        }
        Command::Zero(key) => format!("16{}", key.as_ref().map(service).unwrap_or_default()),
        Command::Flush => "17".to_owned(),
        other => panic!("no line requests {other:?}"),
    }
}

fn role(role: SyncRole) -> u8 {
    match role {
        SyncRole::Master => 1,
        SyncRole::Backup => 2,
    }
}

/// An address as inet_ntop(3) prints it: the last 32 bits of an IPv4-compatible address are dotted decimal.
fn endpoint(Endpoint { addr, port }: Endpoint) -> String {
    match addr {
        IpAddr::V6(v6) if v6.segments()[..6] == [0; 6] && v6.segments()[6] != 0 => {
            format!(" ::{} {port}", Ipv4Addr::from_bits(v6.to_bits() as u32))
        }
        _ => format!(" {addr} {port}"),
    }
}

fn service(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address { protocol: Protocol(protocol), endpoint: at } => {
            format!(" {protocol}{}", endpoint(at))
        }
        ServiceKey::Mark { mark, family: Family::V4 } => format!(" mark {mark} 4"),
        ServiceKey::Mark { mark, family: Family::V6 } => format!(" mark {mark} 6"),
    }
}

fn service_options(key: &ServiceKey, options: &ServiceOptions) -> String {
    let ops = if options.one_packet { 4 } else { 0 };
    let flags = options.flags.0 << 3 | ops | u8::from(options.persistence_timeout_seconds.is_some());
    let mask = match options.netmask {
        Netmask::V4(mask) => mask.to_string(),
        Netmask::V6(bits) => bits.to_string(),
    };
    assert_eq!(matches!(options.netmask, Netmask::V4(_)), key.family() == Family::V4);
    format!(
        " {} {flags:x} {} {mask} {}",
        options.scheduler,
        options.persistence_timeout_seconds.unwrap_or(0),
        options.persistence_engine.as_deref().unwrap_or("-")
    )
}

fn destination_options(options: &DestinationOptions) -> String {
    let method = match options.method {
        ForwardingMethod::Nat => 0,
        ForwardingMethod::Tunnel => 2,
        _ => 3,
    };
    let sums = |checksum| match checksum {
        TunnelChecksum::Without => 0,
        TunnelChecksum::Full => 1,
        TunnelChecksum::Remote => 2,
    };
    let (kind, port, sums) = match options.tunnel {
        Tunnel::Ipip => (0, 0, 0),
        Tunnel::Gue { port, checksum } => (1, port, sums(checksum)),
        Tunnel::Gre { checksum } => (2, 0, sums(checksum)),
    };
    let DestinationOptions { weight, upper_threshold, lower_threshold, .. } = options;
    format!(" {method} {} {upper_threshold} {lower_threshold} {kind} {port} {sums}", weight.0)
}

/// A recorded change; where ipvsadm leaves length, port or TTL of a daemon to the kernel, with the kernel's default.
fn with_defaults(change: &str, ours: &str) -> String {
    let defaults = ["1472", "1452", "8848", "1"];
    if !change.starts_with("9 ") {
        return change.to_owned();
    }
    let fields = change.split(' ').zip(ours.split(' ')).enumerate().map(|(at, (theirs, ours))| {
        if at > 3 && theirs == "0" && defaults.contains(&ours) { ours } else { theirs }
    });
    fields.collect::<Vec<_>>().join(" ")
}

#[test]
fn unusual_arguments_are_refused_or_parsed_as_ipvsadm_does() {
    let names = FixedNames::well_known().host("localhost", [127, 0, 0, 1]);
    let (mut compared, mut faults) = (0, Vec::new());
    for case in include_str!("../kernel/values.txt").split("\n$\t").skip(1) {
        let mut lines = case.lines();
        let words: Vec<_> = lines.next().unwrap().split('\t').collect();
        let (exit, change) = lines.next().unwrap().split_once(' ').unwrap();
        let stderr: String = lines.map(|line| format!("{}\n", &line[2..])).collect();
        let argv: Vec<_> =
            std::iter::once("ipvsadm").chain(words.iter().copied()).map(str::to_owned).collect();
        let mut listener = Listener::default();
        let output = output(&argv, "", &mut listener, &names);
        compared += 1;
        let requested = listener.requested.as_ref().map(recorded).unwrap_or_default();
        let theirs = (exit.to_owned(), with_defaults(change, &requested), stderr);
        let ours = (output.exit.to_string(), requested, output.stderr);
        if ours != theirs {
            faults.push(format!("{words:?}\n  xvsadm:  {ours:?}\n  ipvsadm: {theirs:?}"));
        }
    }
    println!("{compared} command lines");
    assert!(compared > 3_000, "{compared} command lines");
    assert!(faults.is_empty(), "{} of {compared}:\n{}", faults.len(), faults.join("\n"));
}
