//! Packets of GRE and GUE tunnels, to the byte, and packets that are too big for them.
//!
//! Expected headers: IP and UDP by `etherparse`; GRE by RFC 2784 and GUE by draft-ietf-intarea-gue, written here.

use etherparse::checksum::Sum16BitWords;
use etherparse::{EtherType, IpNumber, UdpHeader};
use xvs::frames::{ACK, Complaint, Ipv4, SYN, ethernet, id};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, INSIDE, LAN_MAC, VIP, WAN_MAC, at, server, server_mac};
use xvs::{Datagram, Judged, LabCluster, Transport};

use super::{BEGUN, FORWARDED, assert_judged};

/// A kind of tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ip,
    Gre,
    GreSummed,
    Gue,
    GueSummed,
    GueRemote,
}

use Kind::{Gre, GreSummed, Gue, GueRemote, GueSummed, Ip};

const ALL: [Kind; 6] = [Ip, Gre, GreSummed, Gue, GueSummed, GueRemote];
const GUE_PORT: u16 = 6181;

impl Kind {
    fn options(self) -> &'static str {
        match self {
            Ip => "-i",
            Gre => "-i --tun-type gre",
            GreSummed => "-i --tun-type gre --tun-csum",
            Gue => "-i --tun-type gue --tun-port 6181 --tun-nocsum",
            GueSummed => "-i --tun-type gue --tun-port 6181 --tun-csum",
            GueRemote => "-i --tun-type gue --tun-port 6181 --tun-remcsum",
        }
    }

    /// The length of the outer headers, in bytes.
    fn overhead(self) -> usize {
        match self {
            Ip => 20,
            Gre => 24,
            GreSummed => 28,
            Gue | GueSummed | GueRemote => 32,
        }
    }

    /// The frame to the first server with `inner` inside, and with the identification and source port of `got`.
    fn around(self, inner: &Datagram, got: &[u8]) -> (&'static str, Vec<u8>) {
        let packet = inner.packet();
        let (protocol, payload) = match self {
            Ip => (IpNumber::IPV4, packet),
            Gre => (IpNumber::GRE, [&[0, 0, 8, 0], &packet[..]].concat()),
            GreSummed => {
                let sum = Sum16BitWords::new().add_slice(&[0x80, 0, 8, 0]).add_slice(&packet);
                let sum = sum.ones_complement().to_be().to_be_bytes();
                (IpNumber::GRE, [&[0x80, 0, 8, 0], &sum[..], &[0, 0], &packet].concat())
            }
            Gue | GueSummed | GueRemote => {
                let data = [&[0, 4, 0, 0], &packet[..]].concat();
                let source = u16::from_be_bytes([got[34], got[35]]);
                let mut udp =
                    UdpHeader::without_ipv4_checksum(source, GUE_PORT, data.len()).expect("short enough");
                if self != Gue {
                    let (from, to) = (INSIDE.octets(), server(1).octets());
                    udp.checksum = udp.calc_checksum_ipv4_raw(from, to, &data).expect("short enough");
                }
                (IpNumber::UDP, [&udp.to_bytes()[..], &data].concat())
            }
        };
        // Where fragmentation is forbidden the identification is 0.
        let id = if inner.dont_fragment { 0 } else { id(got) };
        let outer = Ipv4 { ttl: inner.ttl, tos: inner.tos, id, dont_fragment: inner.dont_fragment };
        let packet = outer.packet(protocol, INSIDE, server(1), &payload);
        ("lan", ethernet(LAN_MAC, server_mac(1), EtherType::IPV4, &packet))
    }
}

/// A cluster with a TCP and a UDP service at port 80, whose only server is the first one.
fn cluster(kind: Kind, mtu: u32) -> LabCluster {
    let mut cluster = LabCluster::with_mtu(mtu);
    for protocol in ["-t", "-u"] {
        cluster.adm(&format!("-A {protocol} {VIP}:80 -s rr"));
        cluster.adm(&format!("-a {protocol} {VIP}:80 -r {}:80 {}", server(1), kind.options()));
    }
    cluster
}

fn request(transport: Transport) -> Datagram {
    Datagram { tos: 0xb8, ..Datagram::new(transport, at(CLIENT, 4000), at(VIP, 80)) }
}

/// Asserts that the packet left in a tunnel of this kind.
#[track_caller]
fn assert_tunnelled(judged: &Judged, kind: Kind, packet: &Datagram, moved: &[(&str, u64)]) {
    let inner = Datagram { ttl: packet.ttl - 1, ..packet.clone() };
    assert_eq!(judged.sent.len(), 1, "{kind:?}: {judged:x?}");
    let want = kind.around(&inner, &judged.sent[0].1);
    assert_judged(judged, "transmit", &[want], moved);
}

fn source_port(judged: &Judged) -> u16 {
    let frame = &judged.sent[0].1;
    u16::from_be_bytes([frame[34], frame[35]])
}

#[test]
fn each_kind_of_tunnel_carries_the_packet_whole_behind_its_headers() {
    for kind in ALL {
        for transport in [Transport::Tcp(SYN), Transport::Udp, Transport::UdpUnsummed] {
            for length in [0, 1, 2, 3, 17, 512, 1401] {
                for dont_fragment in [false, true] {
                    let mut cluster = cluster(kind, 1500);
                    let first = Datagram { dont_fragment, ..request(transport).carrying(length) };
                    assert_tunnelled(&cluster.from_client(&first), kind, &first, BEGUN);
                }
            }
        }
    }
}

#[test]
fn a_packet_that_fills_the_tunnel_is_forwarded_and_one_byte_more_is_refused_with_that_size() {
    for kind in ALL {
        let room = 1400 - kind.overhead();
        let fits = Datagram { dont_fragment: true, ..request(Transport::Udp).carrying(room - 28) };
        let mut cluster = cluster(kind, 1400);
        assert_tunnelled(&cluster.from_client(&fits), kind, &fits, BEGUN);

        let first = fits.carrying(room + 1 - 28);
        let judged = cluster.from_client(&first);
        let quoted = Datagram { ttl: 63, ..first };
        let complaint = Complaint::fragmentation_needed(room as u16);
        let message = complaint.about(&quoted.packet(), VIP, id(&judged.sent[0].1));
        let error = ("wan", ethernet(WAN_MAC, GATEWAY_MAC, EtherType::IPV4, &message));
        let moved = [("drop_too_big", 1), ("originated", 1), ("rx_packets", 1), ("tx_packets", 1)];
        assert_judged(&judged, "drop too_big", &[error], &moved);
    }
}

#[test]
fn without_path_mtu_discovery_outer_packets_may_be_fragmented_and_no_error_is_sent() {
    for kind in ALL {
        let mut cluster = cluster(kind, 1400);
        cluster.set("pmtu_disc", 0);
        let first = Datagram { dont_fragment: true, ..request(Transport::Udp) };
        let judged = cluster.from_client(&first);
        let outer = &judged.sent[0].1;
        assert_eq!((outer[20], outer.len()), (0, 14 + kind.overhead() + 28), "{kind:?}");
        assert_eq!(outer[14 + kind.overhead() + 6], 0x40, "the packet inside stays as it is");
        let large = cluster.from_client(&first.carrying(1400));
        let flags: Vec<_> = large.sent.iter().map(|(_, frame)| frame[20] & 0x60).collect();
        assert_eq!((large.verdict.as_str(), flags), ("transmit", vec![0x20, 0]), "{kind:?}");
    }
}

#[test]
fn a_path_with_less_than_68_bytes_inside_the_tunnel_carries_no_packet_and_has_its_own_reason() {
    for kind in ALL {
        let least = 68 + kind.overhead() as u32;
        let first = Datagram { dont_fragment: true, ..request(Transport::Udp) };
        assert_eq!(cluster(kind, least).from_client(&first).verdict, "transmit");
        let moved = [("connections", 1), ("drop_path_too_narrow", 1), ("rx_packets", 1)];
        let judged = cluster(kind, least - 1).from_client(&first);
        assert_judged(&judged, "drop path_too_narrow", &[], &moved);
    }
}

#[test]
fn the_time_to_live_is_checked_before_the_path_mtu() {
    let first = Datagram { ttl: 1, ..request(Transport::Udp) };
    assert_eq!(cluster(Gue, 87).from_client(&first).verdict, "drop ttl_expired");
}

#[test]
fn gue_gives_each_flow_a_constant_source_port_of_its_own() {
    let mut cluster = cluster(Gue, 1500);
    let mut ports = Vec::new();
    for client in 1000..1100 {
        let first = Datagram { source: at(CLIENT, client), ..request(Transport::Tcp(SYN)) };
        let port = source_port(&cluster.from_client(&first));
        let next = Datagram { transport: Transport::Tcp(ACK), ..first.carrying(99) };
        assert_eq!(source_port(&cluster.from_client(&next)), port);
        assert!((32768..60999).contains(&port), "{port}");
        ports.push(port);
    }
    ports.sort_unstable();
    ports.dedup();
    // A hundred flows share one of 28,231 ports now and then.
    assert!(ports.len() >= 95, "{} ports for 100 flows", ports.len());
}

#[test]
fn a_changed_tunnel_applies_to_existing_connections() {
    let mut cluster = cluster(Ip, 1500);
    let packet = request(Transport::Tcp(SYN));
    assert_tunnelled(&cluster.from_client(&packet), Ip, &packet, BEGUN);
    for kind in [GueSummed, Gre, Gue, GreSummed, Ip] {
        cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 {}", server(1), kind.options()));
        assert_tunnelled(&cluster.from_client(&packet), kind, &packet, FORWARDED);
    }
}
