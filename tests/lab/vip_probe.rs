//! Probes of real servers through their virtual address (`through_vip`): the packets of workers, and what replies mean.
//!
//! `etherparse` writes the received and the expected frames. Not here: the check (`crates/health`), and real servers
//! that reply (`netlab/health_vip.rs`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use etherparse::{EtherType, IpNumber, PacketBuilder, TcpOptionElement};
use serde_json::json;
use xvs::frames::{Ipv4, Mac, ethernet, hex};
use xvs::lab_cluster::{
    CLIENT, INSIDE, INSIDE6, LAN_MAC, OUTSIDE, SILENT, VIP, VIP6, assert_balance, at, server, server_mac,
    server6,
};
use xvs::steered::Steered;
use xvs::{Datagram, LabCluster, Transport};
use xvs_dataplane::snapshot::Encapsulation;
use xvs_dataplane::snapshot::vip_probes::{InFlight, VipPath, VipProbes, VipStage};
use xvs_dataplane::steering::Verdict;
use xvs_dataplane::verdict::DropReason;
use xvs_proto::Endpoint;
use xvs_sched::ForwardingMethod;

/// The local port of the probes.
const PORT: u16 = 40_000;

/// A director with a service of each family, and with probes.
fn prepared() -> (LabCluster, Arc<VipProbes>) {
    let mut cluster = LabCluster::new();
    cluster.configure(&["-A -t 198.51.100.1:80", "-A -t [2001:db8:51::1]:80"]);
    let probes = Arc::new(VipProbes::new(PORT));
    cluster.lab().director.set_vip_probes(Some(probes.clone()));
    (cluster, probes)
}

/// The path to a real server for the virtual address of its family.
fn path(server: impl Into<IpAddr>, method: ForwardingMethod) -> VipPath {
    let server: IpAddr = server.into();
    let (local, vip): (IpAddr, IpAddr) =
        if server.is_ipv4() { (INSIDE.into(), VIP.into()) } else { (INSIDE6.into(), VIP6.into()) };
    VipPath {
        local: Endpoint::new(local, PORT),
        virtual_endpoint: Endpoint::new(vip, 80),
        server: Endpoint::new(server, 80),
        method,
        encapsulation: Encapsulation::Ip,
    }
}

/// The only frame that is sent next, which leaves by `lan`.
#[track_caller]
fn next(cluster: &mut LabCluster) -> Vec<u8> {
    let mut sent = cluster.wait(0.1);
    assert_eq!(sent.len(), 1, "{sent:?}");
    let (link, frame) = sent.remove(0);
    assert_eq!(link, "lan");
    frame
}

/// The sequence number of a frame's TCP segment, which begins here.
fn sequence(frame: &[u8], segment: usize) -> u32 {
    u32::from_be_bytes(frame[segment + 4..segment + 8].try_into().expect("four bytes"))
}

/// A TCP segment without data: `SYN`, `RST`, and the number that it acknowledges.
#[derive(Clone, Copy)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    syn: bool,
    rst: bool,
    sequence: u32,
    ack: Option<u32>,
}

impl Segment {
    fn frame(self, macs: (Mac, Mac), ttl: u8, window: u16, options: &[TcpOptionElement]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(macs.0, macs.1);
        let network = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), ttl),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), ttl),
            _ => panic!("one family"),
        };
        let mut tcp = network.tcp(self.from.port(), self.to.port(), self.sequence, window);
        tcp = if self.syn { tcp.syn() } else { tcp };
        tcp = if self.rst { tcp.rst() } else { tcp };
        tcp = if let Some(number) = self.ack { tcp.ack(number) } else { tcp };
        let mut frame = Vec::new();
        tcp.options(options).expect("the options fit").write(&mut frame, &[]).expect("a vector takes all");
        frame
    }

    /// As a server sends it to the director.
    fn reply(self) -> Vec<u8> {
        self.frame((server_mac(1), LAN_MAC), 64, 65160, &[])
    }
}

fn socket(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.addr, endpoint.port)
}

/// The reply to a SYN with this number.
fn syn_ack(path: &VipPath, number: u32) -> Segment {
    let (from, to) = (socket(path.virtual_endpoint), socket(path.local));
    Segment { from, to, syn: true, rst: false, sequence: 7000, ack: Some(number.wrapping_add(1)) }
}

/// The SYN of a probe, as it reaches the server or its tunnel, with the time to live that forwarding has decremented.
fn syn(path: &VipPath, number: u32) -> Vec<u8> {
    let (from, to) = (socket(path.local), socket(path.virtual_endpoint));
    let mss = if to.is_ipv4() { 1460 } else { 1440 };
    let segment = Segment { from, to, syn: true, rst: false, sequence: number, ack: None };
    segment.frame((LAN_MAC, server_mac(1)), 63, 65535, &[TcpOptionElement::MaximumSegmentSize(mss)])
}

fn reset(path: &VipPath, number: u32) -> Vec<u8> {
    let (from, to) = (socket(path.local), socket(path.virtual_endpoint));
    let segment = Segment { from, to, syn: false, rst: true, sequence: number.wrapping_add(1), ack: None };
    segment.frame((LAN_MAC, server_mac(1)), 63, 0, &[])
}

/// A packet in a tunnel to the first server.
fn encapsulated(frame: &[u8]) -> Vec<u8> {
    let header = Ipv4 { ttl: 63, tos: 0, id: 0, dont_fragment: true };
    let packet = header.packet(IpNumber::IPV4, INSIDE, server(1), &frame[14..]);
    ethernet(LAN_MAC, server_mac(1), EtherType::IPV4, &packet)
}

fn begin(probes: &Arc<VipProbes>, path: VipPath) -> InFlight {
    probes.begin(path).expect("few are in flight")
}

#[test]
fn a_probe_leaves_as_a_clients_syn_does_and_a_syn_ack_is_answered_by_a_reset_on_the_same_path() {
    let (mut cluster, probes) = prepared();
    let direct = path(server(1), ForwardingMethod::DirectRouting);
    let direct6 = path(server6(1), ForwardingMethod::DirectRouting);
    let tunnel = path(server(1), ForwardingMethod::Tunnel);
    let plain: fn(&[u8]) -> Vec<u8> = <[u8]>::to_vec;
    for (path, segment, leaves) in
        [(direct, 14 + 20, plain), (direct6, 14 + 40, plain), (tunnel, 14 + 20 + 20, encapsulated)]
    {
        let probe = begin(&probes, path);
        assert_eq!(probe.stage(), VipStage::Queued);
        let frame = next(&mut cluster);
        let number = sequence(&frame, segment);
        assert_eq!(frame, leaves(&syn(&path, number)), "{path:?}");
        assert_eq!(probe.stage(), VipStage::Sent);
        let judged = cluster.inject("lan", &syn_ack(&path, number).reply());
        assert_eq!(judged.verdict, "consumed");
        assert_eq!(judged.sent, [("lan".to_owned(), leaves(&reset(&path, number)))], "{path:?}");
        assert_eq!((judged.moved["originated"], judged.moved["consumed"]), (1, 1));
        assert_eq!(judged.moved.len(), 4, "{judged:?}");
        assert_eq!(probe.stage(), VipStage::Done);
    }
    assert_eq!(cluster.connections(), [""; 0]);
}

#[test]
fn a_reset_means_refused_and_a_packet_of_another_number_or_sender_means_nothing() {
    let (mut cluster, probes) = prepared();
    let path = path(server(1), ForwardingMethod::DirectRouting);
    let probe = begin(&probes, path);
    let number = sequence(&next(&mut cluster), 34);
    let answer = syn_ack(&path, number);
    let others = [
        Segment { ack: Some(number), ..answer },
        Segment { ack: None, ..answer },
        Segment { syn: false, ..answer },
        Segment { from: at(VIP, 81), ..answer },
        Segment { from: at(server(1), 80), ..answer },
        Segment { to: at(OUTSIDE, PORT), ..answer },
        Segment { syn: false, rst: true, ack: None, ..answer },
    ];
    for other in others {
        let judged = cluster.inject("lan", &other.reply());
        assert_eq!((judged.verdict.as_str(), judged.sent), ("consumed", vec![]));
        assert_eq!(probe.stage(), VipStage::Sent);
    }
    for other in [at(INSIDE, PORT + 1), at(CLIENT, PORT)] {
        let judged = cluster.inject("lan", &Segment { to: other, ..answer }.reply());
        assert_eq!(judged.verdict, "pass", "{other}");
    }
    let refusal = Segment { syn: false, rst: true, sequence: 0, ..answer };
    let judged = cluster.inject("lan", &refusal.reply());
    assert_eq!((judged.verdict.as_str(), judged.sent), ("consumed", vec![]));
    assert_eq!(probe.stage(), VipStage::Refused);
    let judged = cluster.inject("lan", &answer.reply());
    assert_eq!((judged.sent, probe.stage()), (vec![], VipStage::Refused));
}

#[test]
fn servers_of_one_virtual_endpoint_are_probed_at_once_and_each_gets_its_own_reset() {
    let (mut cluster, probes) = prepared();
    let paths = [1, 2, 3].map(|number| path(server(number), ForwardingMethod::DirectRouting));
    let begun = paths.map(|path| begin(&probes, path));
    let sent = cluster.wait(0.1);
    let servers: Vec<_> = sent.iter().map(|(_, frame)| frame[5]).collect();
    assert_eq!(servers, [11, 12, 13]);
    let numbers: Vec<_> = sent.iter().map(|(_, frame)| sequence(frame, 34)).collect();
    for place in [2, 0] {
        let judged = cluster.inject("lan", &syn_ack(&paths[place], numbers[place]).reply());
        assert_eq!(judged.sent[0].1[..6], server_mac(place as u8 + 1));
    }
    assert_eq!(begun.each_ref().map(InFlight::stage), [VipStage::Done, VipStage::Sent, VipStage::Done]);
    // A reply after the end of its probe belongs to no probe.
    drop(begun);
    let judged = cluster.inject("lan", &syn_ack(&paths[1], numbers[1]).reply());
    assert_eq!((judged.verdict.as_str(), judged.sent), ("consumed", vec![]));
}

#[test]
fn a_probe_that_cannot_be_sent_says_why_and_leaves_when_the_cause_is_gone() {
    let (mut cluster, probes) = prepared();
    let probe = begin(&probes, path(SILENT, ForwardingMethod::DirectRouting));
    assert_eq!(cluster.wait(0.1), []);
    assert_eq!(probe.stage(), VipStage::Unsent(DropReason::NoNeighbour));
    cluster.ok(json!({ "neighbor": SILENT, "mac": "02:00:00:00:02:99", "link": "lan" }));
    probe.send();
    assert_eq!(next(&mut cluster)[..6], [2, 0, 0, 0, 2, 0x99]);
    assert_eq!(probe.stage(), VipStage::Sent);
    probe.send();
    assert_eq!(next(&mut cluster)[..6], [2, 0, 0, 0, 2, 0x99], "the same SYN again");
    let here = begin(&probes, path(OUTSIDE, ForwardingMethod::DirectRouting));
    assert_eq!(cluster.wait(0.1), []);
    assert_eq!(here.stage(), VipStage::Unsent(DropReason::DestinationLocal));
    assert_balance(&cluster.counters());
    assert_eq!(cluster.lab().director.frames_missing(), 0);
}

#[test]
fn more_probes_than_a_burst_leave_in_several_bursts() {
    let (mut cluster, probes) = prepared();
    let path = |number: u8| VipPath {
        virtual_endpoint: Endpoint::new(VIP, 1000 + u16::from(number)),
        ..path(server(1), ForwardingMethod::DirectRouting)
    };
    let begun: Vec<_> = (0..200).map(|number| begin(&probes, path(number))).collect();
    let sent: Vec<_> = (0..4).map(|_| cluster.wait(0.1).len()).collect();
    assert_eq!(sent, [64, 64, 64, 8]);
    assert!(begun.iter().all(|probe| probe.stage() == VipStage::Sent));
}

#[test]
fn replies_are_steered_to_the_director_while_there_are_probes_and_only_then() {
    let (mut cluster, _) = prepared();
    let mut steered = Steered::new();
    let replies =
        [path(server(1), ForwardingMethod::DirectRouting), path(server6(1), ForwardingMethod::DirectRouting)]
            .map(|path| syn_ack(&path, 1).reply());
    let ssh =
        Datagram::new(Transport::Tcp(0x10), at(CLIENT, 1), at(INSIDE, 22)).frame(server_mac(1), LAN_MAC);
    let mut verdicts = |cluster: &mut LabCluster| {
        [&replies[0], &replies[1], &ssh].map(|frame| steered.verdict(cluster.lab(), frame))
    };
    assert_eq!(verdicts(&mut cluster), [Verdict::Steered, Verdict::Steered, Verdict::Kernel]);
    cluster.lab().director.set_vip_probes(None);
    assert_eq!(verdicts(&mut cluster), [Verdict::Kernel; 3]);
}

#[test]
fn an_explained_reply_neither_ends_a_probe_nor_sends_a_packet() {
    let (mut cluster, probes) = prepared();
    let path = path(server(1), ForwardingMethod::DirectRouting);
    let probe = begin(&probes, path);
    let number = sequence(&next(&mut cluster), 34);
    let report = cluster.ask(json!({ "explain": {
        "in": "lan", "frame": hex(&syn_ack(&path, number).reply())
    } }));
    assert_eq!(report["verdict"], "consumed", "{report}");
    assert_eq!(report["why"], "its port is that of health checks through virtual addresses (`through_vip`)");
    assert_eq!(probe.stage(), VipStage::Sent);
    assert_eq!(cluster.wait(0.1), []);
}
