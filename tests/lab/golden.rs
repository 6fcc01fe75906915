//! Configuration and frames in; verdict, frames out and every counter that moved.
//!
//! Each case asserts everything that a frame does: its verdict, the bytes that leave, the whole difference of the
//! counters (the balance is checked with each frame), and in some cases the service's own counters. Expected bytes are
//! written by `etherparse`. Source of the rules: ipvs-behaviour, sections 2 and 3.

use xvs::frames::Datagram;
use xvs::lab_cluster::{GATEWAY_MAC, LAN_MAC, WAN_MAC, server_mac};
use xvs::{Judged, Transport};

mod between_families;
mod errors_between_families;
mod fragments;
mod fullnat;
mod gone;
mod icmp;
mod ipv6;
mod methods;
mod proxied_datagrams;
mod refusals;
mod shapes;
mod translators;
mod tunnels;

/// A packet of a connection was forwarded.
const FORWARDED: &[(&str, u64)] = &[("rx_packets", 1), ("tx_packets", 1)];
/// A packet began a connection and was forwarded.
const BEGUN: &[(&str, u64)] = &[("connections", 1), ("rx_packets", 1), ("tx_packets", 1)];
/// The packet goes to the kernel.
const PASSED: &[(&str, u64)] = &[("passed_to_kernel", 1), ("rx_packets", 1)];

/// Asserts the whole result of a frame.
#[track_caller]
fn assert_judged(judged: &Judged, verdict: &str, sent: &[(&str, Vec<u8>)], moved: &[(&str, u64)]) {
    assert_eq!(judged.verdict, verdict, "{judged:x?}");
    let sent: Vec<_> = sent.iter().map(|(link, frame)| ((*link).to_owned(), frame.clone())).collect();
    assert_eq!(judged.sent, sent, "\nleft  {:x?}\nright {sent:x?}", judged.sent);
    let moved = moved.iter().map(|(name, by)| ((*name).to_owned(), *by)).collect();
    assert_eq!(judged.moved, moved);
}

/// Asserts that a frame goes to the kernel, without any other effect.
#[track_caller]
fn assert_passed(judged: &Judged) {
    assert_judged(judged, "pass", &[], PASSED);
}

/// The packet with this many bytes of data; for SCTP, behind an INIT.
fn carrying(packet: Datagram, bytes: usize) -> Datagram {
    let sctp = packet.transport == Transport::Sctp;
    let mut packet = packet.carrying(bytes);
    if sctp {
        packet.data.splice(0..0, [1, 0, 0, 20].into_iter().chain([0; 16]));
    }
    packet
}

/// The frame of a packet to a server.
fn to_server(number: u8, packet: &Datagram) -> (&'static str, Vec<u8>) {
    ("lan", packet.frame(LAN_MAC, server_mac(number)))
}

/// The frame of a packet to a client.
fn to_client(packet: &Datagram) -> (&'static str, Vec<u8>) {
    ("wan", packet.frame(WAN_MAC, GATEWAY_MAC))
}
