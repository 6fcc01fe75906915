//! ARP probes (RFC 5227 §2.1.1): the machines on a link that answer for an IPv4 address, and which of them should not.
//!
//! A probe has no sender address, so it changes no ARP table. The machine with the address answers. A real server that
//! has the address on another interface answers too, unless it is configured not to. Blocks for the given time.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use xvs_proto::MacAddr;
use xvs_sched::ForwardingMethod;
use xvs_xdp::packet_socket::PacketSocket;

use crate::doctor::facts::{Answer, Facts};
use crate::doctor::finding::Finding;

/// Probes each of these addresses on a link three times within `timeout`. Returns each address with the machines that
/// answered, without duplicates and without this machine. Needs CAP_NET_RAW.
///
/// # Errors
/// The kernel's error; ENETDOWN if the link is down.
pub(super) fn who_has(
    ifindex: u32,
    mac: MacAddr,
    addresses: &[Ipv4Addr],
    timeout: Duration,
) -> io::Result<Vec<(Ipv4Addr, MacAddr)>> {
    let socket = PacketSocket::open(ifindex, ETHERTYPE)?;
    let mut answers = Vec::new();
    for _ in 0..PROBES {
        addresses.iter().try_for_each(|addr| socket.broadcast(&probe(mac, *addr)))?;
        let end = Instant::now() + timeout / PROBES;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let mut received = [0; PACKET_LEN];
            let Some(len) = socket.receive(&mut received, left)? else { break };
            answers
                .extend(sender(&received[..len]).filter(|(addr, by)| addresses.contains(addr) && *by != mac));
        }
    }
    answers.sort_unstable();
    answers.dedup();
    Ok(answers)
}

/// An ARP probe for an address (RFC 826, RFC 5227).
fn probe(mac: MacAddr, addr: Ipv4Addr) -> [u8; PACKET_LEN] {
    let mut packet = [0; PACKET_LEN];
    packet[..REQUEST.len()].copy_from_slice(&REQUEST);
    packet[8..14].copy_from_slice(&mac.0);
    packet[24..].copy_from_slice(&addr.octets());
    packet
}

/// The sender of an ARP request or reply. `None` if the packet is not ARP for Ethernet and IPv4.
fn sender(packet: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let whole = packet.len() == PACKET_LEN && packet[..7] == REQUEST[..7] && matches!(packet[7], 1 | 2);
    let mac = packet.get(8..14)?.try_into().ok()?;
    let addr: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    whole.then(|| (addr.into(), MacAddr(mac)))
}

/// Whether other machines answer ARP for virtual addresses, such as real servers without ARP suppression.
pub(super) fn answered_by_others(facts: &Facts) -> Vec<Finding> {
    // `present` names a stranger that answers for an address that this machine lacks.
    let mut findings: Vec<_> =
        facts.answers.iter().filter_map(|answer| wrong_answer(facts, answer)).collect();
    if facts.probed.is_empty() {
        return findings;
    }
    for vip in facts.virtual_addresses().into_iter().filter(IpAddr::is_ipv4) {
        if facts.answers.iter().all(|answer| answer.addr != vip) {
            findings.push(
                Finding::of(ARP, vip)
                    .seen(format!("ARP probes on {}", facts.probed.join(", ")))
                    .ok("no other machine answers for it"),
            );
        }
    }
    findings
}

fn wrong_answer(facts: &Facts, answer: &Answer) -> Option<Finding> {
    let Answer { addr, link, mac } = answer;
    let addresses: Vec<_> = facts
        .network
        .neighbours
        .iter()
        .filter(|neighbour| neighbour.mac == *mac)
        .map(|neighbour| neighbour.addr)
        .collect();
    let arp = Finding::of(ARP, addr).seen(format!("ARP probes on {link}"));
    Some(match facts.servers().find(|(_, server)| addresses.contains(&server.endpoint.addr)) {
        Some((_, server)) => {
            let host = server.endpoint.addr;
            let command = match server.options.method {
                ForwardingMethod::DirectRouting => format!("xvs realserver up --vip {addr}"),
                ForwardingMethod::Tunnel => format!("xvs realserver up --vip {addr} --method tunnel"),
                // A NAT real server does not use the virtual address.
                _ => format!("ip address del {addr}/32 dev lo"),
            };
            arp.fail(format!(
                "the real server {host} answers ARP for it on {link} ({mac}): clients bypass the director"
            ))
            .mend_on(host, command)
        }
        None if facts.holder((*addr).into()).is_none() => return None,
        None => {
            let host = addresses.first().map_or_else(|| mac.to_string(), |addr| format!("{addr} ({mac})"));
            arp.fail(format!(
                "{host} answers ARP for it on {link}: clients bypass the director; it is not a known real \
                 server"
            ))
            .mend_on(host, format!("xvs realserver up --vip {addr}"))
        }
    })
}

/// The name of the check.
pub(super) const ARP: &str = "arp";
/// `ETH_P_ARP`.
const ETHERTYPE: u16 = 0x0806;
/// Ethernet, IPv4, the lengths of their addresses, and the request operation.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const PACKET_LEN: usize = 28;
/// `PROBE_NUM` of RFC 5227.
const PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::tests::{SERVER_MAC, facts, only, serve, web};
    use crate::doctor::finding::Level;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_probe_has_no_sender_address_and_a_reply_has_one() {
        let addr = Ipv4Addr::new(198, 51, 100, 100);
        let probe = probe(MAC, addr);
        // RFC 826, field by field; RFC 5227 §2.1.1: the sender's address is zero.
        let expected =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 198, 51, 100, 100];
        assert_eq!(probe, expected);
        let mut answer = expected;
        answer[7] = 2;
        answer[8..18].copy_from_slice(&[2, 0, 0, 0, 0, 0x11, 198, 51, 100, 100]);
        assert_eq!(sender(&answer), Some((addr, MacAddr([2, 0, 0, 0, 0, 0x11]))));
        for broken in [&answer[..27], &[0; 28], &[]] {
            assert_eq!(sender(broken), None);
        }
    }

    #[test]
    fn another_machine_that_answers_arp_for_the_address_is_named_with_the_command_that_suppresses_it() {
        let of = |method, mac| {
            let mut facts = serve(facts(), web(), method);
            facts.probed = vec!["lan".to_owned()];
            assert_eq!(only(answered_by_others(&facts)).level, Level::Ok);
            let addr = "198.51.100.100".parse().unwrap();
            facts.answers.push(Answer { addr, link: "lan".to_owned(), mac });
            let found = only(answered_by_others(&facts));
            assert_eq!(found.level, Level::Fail);
            let mend = found.mend.unwrap();
            (mend.on.unwrap(), mend.command)
        };
        let host = "192.0.2.11".to_owned();
        let up = "xvs realserver up --vip 198.51.100.100";
        assert_eq!(of(ForwardingMethod::DirectRouting, SERVER_MAC), (host.clone(), up.to_owned()));
        assert_eq!(of(ForwardingMethod::Tunnel, SERVER_MAC), (host.clone(), format!("{up} --method tunnel")));
        let del = "ip address del 198.51.100.100/32 dev lo".to_owned();
        assert_eq!(of(ForwardingMethod::Nat, SERVER_MAC), (host, del));
        let stranger = MacAddr([2, 0, 0, 0, 0, 0x99]);
        assert_eq!(of(ForwardingMethod::Nat, stranger), ("02:00:00:00:00:99".to_owned(), up.to_owned()));
    }
}
