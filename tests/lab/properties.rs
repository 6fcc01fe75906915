//! Invariants after every step of any mixture of frames, commands and time.
//!
//! Frames are valid, mutated or random bytes; commands are valid or not. After each step: no panic, the counters
//! balance (checked with each frame), every destination's ActiveConn, InActConn and PersistConn are the rows of its
//! connections and templates, every sent frame has correct lengths and checksums, and the XDP program would have
//! redirected every frame that the director did not pass to the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, SlicedPacket, TransportSlice, checksum};
use proptest::prelude::*;
use serde_json::json;
use xvs::frames::{Complaint, Complaint6, Ipv4, Ipv6, Mac, ethernet, resum, sctp_checksum_is_right};
use xvs::fuzz::{self, Plan};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::steered::{Steered, unreadable};
use xvs::{Datagram, Judged, LabCluster, Transport};
use xvs_dataplane::steering::Verdict;

#[derive(Clone, Debug)]
enum Step {
    /// A command line of ipvsadm.
    Command(String),
    /// A packet, and the change to its frame.
    Packet { inbound: bool, datagram: Datagram, harm: Harm },
    /// An ICMP error about the reply to a packet, or about the packet in a tunnel, and the change to its frame.
    Report { inbound: bool, about: Vec<u8>, what: (u8, u8, u16), harm: Harm },
    /// Random bytes.
    Noise(Vec<u8>),
    /// A setting and its value.
    Set(&'static str, u8),
    /// Tenths of a second.
    Advance(u32),
}

#[derive(Clone, Debug)]
enum Harm {
    None,
    /// Cut short.
    Cut(prop::sample::Index),
    /// Some bytes replaced, with the header checksum recomputed.
    Bytes(Vec<(prop::sample::Index, u8)>),
    /// Some bytes replaced, without a new checksum.
    Raw(Vec<(prop::sample::Index, u8)>),
    /// Padding added.
    Padded(u8),
}

/// A second virtual address, whose services have port 0, for every port.
const ANY: &str = "198.51.100.2:0";
const VIP_OF_ANY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const ANY6: &str = "[2001:db8:51::2]:0";
const VIP6_OF_ANY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);

fn service() -> impl Strategy<Value = String> {
    prop_oneof!["-t", "-u", "--sctp-service"]
        .prop_flat_map(|protocol| (80u16..82).prop_map(move |port| format!("{protocol} {VIP}:{port}")))
}

fn command() -> impl Strategy<Value = String> {
    let dest = || (1u8..4, prop_oneof![Just(80u16), Just(81), Just(8080)]);
    let method = || prop_oneof![Just("-m"), Just("-m"), Just("-g"), Just("-i"), Just("--fullnat")];
    prop_oneof![
        3 => (service(), prop_oneof!["rr", "wrr", "wlc"]).prop_map(|(service, by)| format!("-A {service} -s {by}")),
        1 => Just(format!("-A -u {VIP}:80 -o")),
        2 => (service(), persistence()).prop_map(|(service, keeps)| format!("-A {service} -s rr {keeps}")),
        1 => (service(), persistence()).prop_map(|(service, keeps)| format!("-E {service} -s rr {keeps}")),
        1 => (any_port(), persistence()).prop_map(|(service, keeps)| format!("-A {service} -s rr {keeps}")),
        2 => (any_port(), 1u8..4, method(), 0u8..3).prop_map(|(service, number, method, weight)| {
            format!("-a {service} -r {}:0 {method} -w {weight}", server(number))
        }),
        1 => (any_port(), 1u8..4).prop_map(|(service, number)| format!("-d {service} -r {}:0", server(number))),
        1 => any_port().prop_map(|service| format!("-D {service}")),
        1 => (service(), prop_oneof!["rr", "wrr", "wlc"]).prop_map(|(service, by)| format!("-E {service} -s {by}")),
        1 => (service(), prop_oneof!["proxy", "toa"])
            .prop_map(|(service, form)| format!("-E {service} -s rr --client-address {form}")),
        1 => service().prop_map(|service| format!("-D {service}")),
        6 => (service(), dest(), method(), 0u8..4).prop_map(|(service, (number, port), method, weight)| {
            format!("-a {service} -r {}:{port} {method} -w {weight}", server(number))
        }),
        2 => (service(), dest(), method(), 0u8..4).prop_map(|(service, (number, port), method, weight)| {
            format!("-e {service} -r {}:{port} {method} -w {weight}", server(number))
        }),
        2 => (service(), dest()).prop_map(|(service, (number, port))| {
            format!("-d {service} -r {}:{port}", server(number))
        }),
        1 => Just("-Z".to_owned()),
        1 => (0u16..40, 0u16..40, 0u16..40).prop_map(|(tcp, fin, udp)| format!("--set {tcp} {fin} {udp}")),
        1 => Just("-C".to_owned()),
    ]
}

/// The same command for IPv6.
fn line_in_v6(line: &str) -> String {
    let line = line.replace(ANY, ANY6).replace("-M 255.255.255.0", "-M 64");
    let line = line.replace(&VIP.to_string(), &format!("[{VIP6}]"));
    (1..4).fold(line, |line, number| {
        line.replace(&server(number).to_string(), &format!("[{}]", server6(number)))
    })
}

/// The same packet over IPv6.
fn packet_in_v6(packet: Datagram) -> Datagram {
    let addr = |old: SocketAddr| {
        let new = match old.ip() {
            addr if addr == IpAddr::from(VIP) => VIP6,
            addr if addr == IpAddr::from(VIP_OF_ANY) => VIP6_OF_ANY,
            addr if addr == IpAddr::from(CLIENT) => CLIENT6,
            addr if addr == IpAddr::from(INSIDE) => INSIDE6,
            addr => {
                (1..4).find(|number| addr == IpAddr::from(server(*number))).map(server6).expect("a server")
            }
        };
        at(new, old.port())
    };
    Datagram { source: addr(packet.source), dest: addr(packet.dest), ..packet }
}

fn any_port() -> impl Strategy<Value = String> {
    prop_oneof![Just(format!("-t {ANY}")), Just(format!("-u {ANY}"))]
}

fn persistence() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("-p 5"), Just("-p 90"), Just("-p 90 -M 255.255.255.0"), Just("-p 30 --pe sip")]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        3 => prop_oneof![Just(0x02u8), Just(0x10), Just(0x12), Just(0x11), Just(0x04), any::<u8>()]
            .prop_map(|flags| Transport::Tcp(flags & 0x17)),
        1 => Just(Transport::Udp),
        1 => Just(Transport::UdpUnsummed),
        1 => Just(Transport::Sctp),
    ]
}

fn harm() -> impl Strategy<Value = Harm> {
    let edits = || prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    prop_oneof![
        8 => Just(Harm::None),
        1 => any::<prop::sample::Index>().prop_map(Harm::Cut),
        2 => edits().prop_map(Harm::Bytes),
        1 => edits().prop_map(Harm::Raw),
        1 => (0u8..60).prop_map(Harm::Padded),
    ]
}

fn packet() -> impl Strategy<Value = Step> {
    let head = (
        (any::<bool>(), prop_oneof![3 => Just(VIP), 1 => Just(VIP_OF_ANY)]),
        transport(),
        1u16..5,
        80u16..82,
        1u8..4,
        prop_oneof![Just(80u16), Just(81), Just(8080)],
    );
    let tail = (
        prop_oneof![4 => Just(64u8), 1 => 0u8..4],
        any::<bool>(),
        any::<u8>(),
        0usize..1600,
        0u8..16,
        harm(),
    );
    (head, tail).prop_map(
        |(
            ((inbound, vip), transport, client, port, number, dest),
            (ttl, dont_fragment, tos, length, chunk, harm),
        )| {
            let client = at(CLIENT, 4000 + client);
            let (source, to) = match inbound {
                true => (client, at(vip, port)),
                // The address to which a server replies under FULLNAT, with as many ports as there are clients.
                false if vip == VIP_OF_ANY => (at(server(number), dest), at(INSIDE, client.port())),
                false => (at(server(number), dest), client),
            };
            // Mostly short; a frame of the lab holds 1792 bytes.
            let length = if length < 1500 { length % 60 } else { length };
            let mut datagram =
                Datagram { ttl, dont_fragment, tos, ..Datagram::new(transport, source, to).carrying(length) };
            if let (Transport::Sctp, Some(kind)) = (transport, datagram.data.first_mut()) {
                *kind = chunk;
            }
            Step::Packet { inbound, datagram, harm }
        },
    )
}

/// An ICMP error that quotes the reply to a packet, or the packet in a tunnel, cut at a random length.
fn report(packet: impl Strategy<Value = Step>) -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        Just((3u8, 4u8)),
        Just((2, 0)),
        Just((3, 3)),
        Just((1, 4)),
        Just((11, 0)),
        any::<(u8, u8)>()
    ];
    (packet, kind, any::<u16>(), 40usize..200, prop::bool::weighted(0.3)).prop_map(
        |(step, (kind, code), mtu, cut, in_tunnel)| {
            let Step::Packet { inbound, datagram, harm } = step else { return step };
            let Datagram { source, dest, .. } = datagram;
            let mut about = match in_tunnel && inbound {
                true => tunnelled(&datagram.packet()),
                false => Datagram { source: dest, dest: source, ..datagram }.packet(),
            };
            about.truncate(cut);
            Step::Report { inbound: inbound && !in_tunnel, about, what: (kind, code, mtu), harm }
        },
    )
}

/// A packet in IP in IP from the director to the first server.
fn tunnelled(packet: &[u8]) -> Vec<u8> {
    match packet[0] >> 4 {
        4 => Ipv4 { ttl: 60, tos: 0, id: 0, dont_fragment: true }.packet(
            IpNumber::IPV4,
            INSIDE,
            server(1),
            packet,
        ),
        _ => Ipv6 { hop_limit: 60, traffic_class: 0 }.packet(IpNumber::IPV6, INSIDE6, server6(1), packet),
    }
}

/// The frame of an error, sent to the source of the quoted packet.
fn reported(inbound: bool, about: &[u8], (kind, code, mtu): (u8, u8, u16)) -> (&'static str, Vec<u8>) {
    let (ether_type, error) = match about[0] >> 4 {
        4 => {
            let [high, low] = mtu.to_be_bytes();
            (EtherType::IPV4, Complaint(kind, code, [0, 0, high, low]).about(about, server(3), 7))
        }
        _ => (EtherType::IPV6, Complaint6(kind, code, mtu.into()).about(about, server6(3))),
    };
    match inbound {
        true => ("wan", ethernet(GATEWAY_MAC, WAN_MAC, ether_type, &error)),
        false => ("lan", ethernet(server_mac(3), LAN_MAC, ether_type, &error)),
    }
}

fn set() -> impl Strategy<Value = Step> {
    let switch = [
        "expire_nodest_conn",
        "expire_quiescent_template",
        "udp_nodest_reschedule",
        "sloppy_tcp",
        "sloppy_sctp",
        "nat_icmp_send",
    ];
    let table =
        [("conn_reuse_mode", [0, 1, 2, 3]), ("secure_tcp", [0, 3, 0, 3]), ("drop_packet", [0, 0, 0, 3])];
    prop_oneof![
        (prop::sample::select(switch.to_vec()), 0u8..2).prop_map(|(key, value)| Step::Set(key, value)),
        (prop::sample::select(table.to_vec()), 0usize..4)
            .prop_map(|((key, values), at)| Step::Set(key, values[at])),
    ]
}

fn in_v6(step: Step) -> Step {
    match step {
        Step::Packet { inbound, datagram, harm } => {
            Step::Packet { inbound, datagram: packet_in_v6(datagram), harm }
        }
        other => other,
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => set(),
        4 => command().prop_map(Step::Command),
        3 => command().prop_map(|line| Step::Command(line_in_v6(&line))),
        14 => packet(),
        10 => packet().prop_map(in_v6),
        3 => report(packet()),
        3 => report(packet().prop_map(in_v6)),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Noise),
        2 => prop_oneof![4 => 0u32..100, 1 => 0u32..4000].prop_map(Step::Advance),
    ]
}

fn harmed(mut frame: Vec<u8>, harm: &Harm) -> Vec<u8> {
    match harm {
        Harm::None => {}
        Harm::Cut(at) => frame.truncate(at.index(frame.len())),
        Harm::Bytes(edits) | Harm::Raw(edits) => {
            for (at, byte) in edits {
                // Not in the data, where it would only make a checksum wrong.
                let at = at.index(frame.len().min(60));
                frame[at] = *byte;
            }
            if matches!(harm, Harm::Bytes(_)) {
                resum(&mut frame);
            }
        }
        Harm::Padded(by) => frame.resize(frame.len() + usize::from(*by), 0xa5),
    }
    frame
}

/// Asserts that a sent frame is an untagged packet from the link's own address, with consistent lengths, and with
/// correct checksums where the received frame had them.
fn check_sent(judged: &Judged, whole: bool) -> Result<(), TestCaseError> {
    for (link, frame) in &judged.sent {
        let mac: Mac = if link == "wan" { WAN_MAC } else { LAN_MAC };
        prop_assert_eq!(&frame[6..12], &mac[..]);
        match frame[12..14] {
            [0x86, 0xdd] => check_v6(frame, whole)?,
            _ => check_v4(frame, whole)?,
        }
    }
    Ok(())
}

fn check_v4(frame: &[u8], whole: bool) -> Result<(), TestCaseError> {
    let Ok((header, _)) = Ipv4Header::from_slice(&frame[14..]) else {
        return Err(TestCaseError::fail(format!("not IPv4: {frame:x?}")));
    };
    prop_assert_eq!(usize::from(header.total_len) + 14, frame.len());
    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
    prop_assert!(header.time_to_live > 0);
    if header.is_fragmenting_payload() {
        // The checksum covers all fragments.
        return Ok(());
    }
    // A wrong transport checksum stays wrong.
    if !whole && header.protocol != IpNumber::ICMP {
        return Ok(());
    }
    if header.protocol == IpNumber::SCTP {
        prop_assert!(sctp_checksum_is_right(&frame[14 + header.header_len()..]), "{:x?}", frame);
        return Ok(());
    }
    let transport = match header.protocol {
        IpNumber::IPV4 => None,
        _ => SlicedPacket::from_ip(&frame[14..]).ok().and_then(|packet| packet.transport),
    };
    prop_assert!(transport.is_some() || header.protocol == IpNumber::IPV4, "{:x?}", frame);
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let header_of = tcp.to_header();
            let sum = header_of.calc_checksum_ipv4_raw(header.source, header.destination, tcp.payload());
            prop_assert_eq!(Ok(header_of.checksum), sum);
        }
        Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
            let header_of = udp.to_header();
            let sum = header_of.calc_checksum_ipv4_raw(header.source, header.destination, udp.payload());
            prop_assert_eq!(Ok(header_of.checksum), sum);
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            // Over all bytes: the parsed form omits those that a type leaves unused.
            let sum = checksum::Sum16BitWords::new().add_slice(icmp.slice());
            prop_assert_eq!(sum.ones_complement(), 0, "{:x?}", frame);
        }
        _ => {}
    }
    Ok(())
}

fn check_v6(frame: &[u8], whole: bool) -> Result<(), TestCaseError> {
    let Ok((header, payload)) = Ipv6Header::from_slice(&frame[14..]) else {
        return Err(TestCaseError::fail(format!("not IPv6: {frame:x?}")));
    };
    prop_assert_eq!(usize::from(header.payload_length), payload.len());
    prop_assert!(header.hop_limit > 0);
    // A wrong transport checksum stays wrong.
    if !whole && header.next_header != IpNumber::IPV6_ICMP {
        return Ok(());
    }
    if header.next_header == IpNumber::SCTP {
        prop_assert!(sctp_checksum_is_right(payload), "{:x?}", frame);
        return Ok(());
    }
    let (from, to) = (header.source, header.destination);
    match SlicedPacket::from_ip(&frame[14..]).ok().and_then(|packet| packet.transport) {
        Some(TransportSlice::Tcp(tcp)) => {
            let header_of = tcp.to_header();
            prop_assert_eq!(
                Ok(header_of.checksum),
                header_of.calc_checksum_ipv6_raw(from, to, tcp.payload())
            );
        }
        Some(TransportSlice::Udp(udp)) => {
            let header_of = udp.to_header();
            let sum = header_of.calc_checksum_ipv6_raw(from, to, udp.payload());
            prop_assert!(header_of.checksum == 0 || Ok(header_of.checksum) == sum, "{:x?}", frame);
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            prop_assert!(icmp.is_checksum_valid(from, to), "{:x?}", frame);
        }
        // In a tunnel.
        None if matches!(header.next_header, IpNumber::IPV4 | IpNumber::IPV6) => {}
        _ => return Err(TestCaseError::fail(format!("no transport: {frame:x?}"))),
    }
    Ok(())
}

/// Injects a frame, and asserts that the XDP program steers it unless the director passes it to the kernel.
fn inject(
    cluster: &mut LabCluster,
    steered: &mut Steered,
    link: &str,
    frame: &[u8],
) -> Result<Judged, TestCaseError> {
    // The kernel runs no program on less than an Ethernet header.
    let steering = (frame.len() >= 14).then(|| steered.verdict_by(cluster.steering_rules(), frame));
    let judged = cluster.inject(link, frame);
    // The director holds fragments of any connection, while the program steers them by their addresses.
    let refused = judged.verdict.strip_prefix("drop ");
    let refused = refused.is_some_and(|reason| reason.starts_with("fragment_") || unreadable(reason));
    let kept = judged.verdict != "pass" && judged.verdict != "consumed" && !refused;
    prop_assert!(!(kept && steering == Some(Verdict::Kernel)), "{:?}: {:x?}", judged, frame);
    Ok(judged)
}

/// Asserts that each listed destination counts as many connections and templates as `-Lnc` has rows for it.
fn check_counts(cluster: &mut LabCluster) -> Result<(), TestCaseError> {
    let rows = cluster.connections();
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.split(' ').collect()).collect();
    let listing = cluster.adm("-L -n --persistent-conn");
    let mut service = (String::new(), String::new());
    for line in listing.lines().skip(3) {
        let words: Vec<_> = line.split_whitespace().collect();
        if words[0] != "->" {
            service = (words[0].to_owned(), words[1].to_owned());
            continue;
        }
        let address = |endpoint: &str| endpoint.rsplit_once(':').map(|(address, _)| address.to_owned());
        let any_port = [ANY, ANY6].contains(&service.1.as_str());
        let of_this = |row: &&Vec<&str>| match any_port {
            // A service of every port is found by its address.
            true => {
                let addresses = (address(row[4]), address(row[5]));
                row[0] == service.0 && addresses == (address(&service.1), address(words[1]))
            }
            false => (row[0], row[4], row[5]) == (&service.0, &service.1, words[1]),
        };
        let active = |row: &&Vec<&str>| ["ESTABLISHED", "SYN_RECV", "SYN_SENT", "SYNACK"].contains(&row[2]);
        let (templates, mine): (Vec<_>, Vec<_>) =
            rows.iter().filter(of_this).partition(|row| ["NONE", "ASSURED"].contains(&row[2]));
        let active = mine.iter().copied().filter(active).count();
        let want = (active.to_string(), (mine.len() - active).to_string());
        prop_assert_eq!((words[4].to_owned(), words[5].to_owned()), want, "{}\n{:#?}", listing, rows);
        // Templates that are no longer found do not show their port at the server.
        let detached = rows.iter().filter(|row| {
            let server = (address(row[5]), row[5].ends_with(":65535"));
            !any_port && row[0] == service.0 && server == (address(words[1]), true)
        });
        let known = templates.len()..=templates.len() + detached.count();
        let counted: usize = words[3].parse().expect("a count");
        prop_assert!(known.contains(&counted), "{} of {:?}\n{}\n{:#?}", counted, known, listing, rows);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn counters_balance_after_any_mixture_of_frames_commands_and_time(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut steered = Steered::new();
        let mut cluster = LabCluster::with_mtu(1480);
        cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:8080 -m", server(1)));
        for local in [IpAddr::from(INSIDE), INSIDE6.into()] {
            cluster.xvs(&format!("laddr add {local} --ports 4001-4004"));
        }
        cluster.adm(&format!("-A -t [{VIP6}]:80 -s rr"));
        cluster.adm(&format!("-a -t [{VIP6}]:80 -r [{}]:8080 -m", server6(1)));
        for step in steps {
            match &step {
                Step::Command(line) => {
                    let words: Vec<_> = line.split(' ').collect();
                    let answer = cluster.ask(json!({ "adm": words }));
                    let exit = answer["exit"].as_u64();
                    prop_assert!(exit == Some(0) || exit == Some(255), "{}: {}", line, answer);
                }
                Step::Packet { inbound, datagram, harm } => {
                    let (link, frame) = match inbound {
                        true => ("wan", datagram.frame(GATEWAY_MAC, WAN_MAC)),
                        false => ("lan", datagram.frame(server_mac(1), LAN_MAC)),
                    };
                    let judged = inject(&mut cluster, &mut steered, link, &harmed(frame, harm))?;
                    check_sent(&judged, matches!(harm, Harm::None | Harm::Padded(_)))?;
                }
                Step::Report { inbound, about, what, harm } => {
                    let (link, frame) = reported(*inbound, about, *what);
                    let judged = inject(&mut cluster, &mut steered, link, &harmed(frame, harm))?;
                    // Methods other than NAT leave a wrong checksum wrong.
                    if matches!(harm, Harm::None | Harm::Padded(_)) {
                        check_sent(&judged, true)?;
                    }
                }
                Step::Noise(bytes) => {
                    let judged = inject(&mut cluster, &mut steered, "wan", bytes)?;
                    check_sent(&judged, false)?;
                }
                Step::Set(key, value) => cluster.ok(json!({ "set": { *key: value } })),
                Step::Advance(tenths) => {
                    cluster.wait(f64::from(*tenths) / 10.0);
                }
            }
            // A replaced connection is counted until the next tick, as under IPVS.
            cluster.wait(0.1);
            check_counts(&mut cluster)?;
        }
    }
}

#[test]
fn recorded_frames_changed_at_random_are_all_accounted_for_in_every_configuration() {
    let plan = Plan { seed: 1, frames: 60_000, at_most: Duration::MAX };
    let (done, counters) = fuzz::run(plan);
    assert!(done >= plan.frames);
    // The changes are mild enough that many frames are served, by every forwarding method.
    for counter in [
        "tx_packets",
        "passed_to_kernel",
        "connections",
        "originated",
        "drop_ttl_expired",
        "syn_cookies_accepted",
    ] {
        assert!(counters[counter].as_u64() > Some(20), "{counter}: {counters:#}");
    }
}
