//! Fuzzing of the packet path: recorded frames, changed at random, through a director with services of every kind.
//!
//! Runs whole bursts through the lab, from both sides, while commands, settings and time change at random too. After
//! every burst each frame must be in its place again and the counters must balance; a panic or a lost frame
//! prints its burst. A seed repeats its run. Cost: about a microsecond per frame in a release build.
//! With `XVS_OFFLOAD` each frame is a burst of its own, and the kernel runs the XDP program on it, beside a director
//! without the program, which must do the same. Not here: the content of sent frames, which `tests/lab/properties.rs`
//! checks frame by frame.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::BothPaths;
use etherparse::{EtherType, IpNumber, LinkHeader, NetHeaders, PacketHeaders, TransportHeader};
use serde_json::{Value, json};

use crate::frames::{Datagram, Ipv4, Ipv6, SYN, Transport, hex, resum, unhex};
use crate::{offload, recording};

/// The length and seed of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed of the random numbers.
    pub seed: u64,
    /// Number of frames.
    pub frames: u64,
    /// Time limit, after which the run ends with fewer frames.
    pub at_most: Duration,
}

/// Carries out a plan. Returns the number of frames, and the counters.
///
/// # Panics
/// If the director does, if a frame is lost, or if the counters do not balance.
pub fn run(plan: Plan) -> (u64, Value) {
    let mut seeds = recorded();
    let mut lab = seeds.lab();
    let mut random = Random(plan.seed);
    let began = Instant::now();
    let mut done = 0;
    while done < plan.frames && began.elapsed() < plan.at_most {
        let mut burst: Vec<_> = (0..BURST).map(|_| seeds.frame(&mut random)).collect();
        if offload::is_wanted() {
            burst = burst.iter().flat_map(|frame| seeds.insisting(frame, &mut random)).collect();
            // In its test runs the program does not know by which link a frame comes.
            burst.retain(|frame| !seeds.is_astray(frame));
        }
        match catch_unwind(AssertUnwindSafe(|| one_burst(&mut lab, &burst, &mut random))) {
            Ok(sent) => seeds.answers = sent.iter().filter_map(answer).collect(),
            Err(fault) => {
                eprintln!("seed {}, after {done} frames:", plan.seed);
                burst.iter().for_each(|(link, frame)| eprintln!("{link} {}", hex(frame)));
                resume_unwind(fault);
            }
        }
        done += burst.len() as u64;
    }
    (done, ask(&mut lab, json!({ "counters": true })))
}

/// A burst from each side, then perhaps a command, a setting or some time. Returns what was sent.
fn one_burst(
    lab: &mut BothPaths,
    burst: &[(&'static str, Vec<u8>)],
    random: &mut Random,
) -> Vec<(String, Vec<u8>)> {
    let mut sent = Vec::new();
    for side in LINKS {
        let frames = burst.iter().filter(|(link, _)| *link == side).map(|(_, frame)| frame.as_slice());
        let frames: Vec<_> = frames.collect();
        // The program forwards frames that come alone.
        let most = if offload::is_wanted() { 1 } else { frames.len().max(1) };
        frames.chunks(most).for_each(|frames| sent.extend(lab.burst(side, frames)));
        for director in lab.directors() {
            let balance = director.unaccounted_frames();
            assert_eq!(balance, 0, "received + originated = transmitted + passed + consumed + dropped");
            assert_eq!(director.frames_missing(), 0, "every frame is in its place");
        }
    }
    match random.below(400) {
        0..10 => command(lab, random),
        10..14 => {
            let (key, value) = (random.of(&SETTINGS), random.below(2));
            ask(lab, json!({ "set": { *key: value } }));
        }
        24 if random.below(20) == 0 => {
            ask(lab, json!({ "adm": ["-L", "-n", "-c"] }));
            ask(lab, json!({ "counters": true }));
        }
        14..24 => {
            ask(lab, json!({ "advance": random.below(700) as f64 / 10.0 }));
        }
        _ => {}
    }
    sent
}

/// Frames per burst.
const BURST: u64 = 64;
/// The two sides of the recordings' director.
const LINKS: [&str; 2] = ["cl0", "rs0"];
const SETTINGS: [&str; 8] = [
    "schedule_icmp",
    "expire_nodest_conn",
    "sloppy_tcp",
    "sloppy_sctp",
    "nat_icmp_send",
    "conn_reuse_mode",
    "secure_tcp",
    "udp_nodest_reschedule",
];
const VIRTUAL: [&str; 3] = ["10.1.0.100", "10.1.0.101", "[fd00:1::100]"];
const PROTOCOLS: [&str; 3] = ["-t", "-u", "--sctp-service"];
const PORTS: [u16; 5] = [80, 53, 443, 500, 3868];
/// The port of the TCP services behind the SYN proxy.
const PROXIED: u16 = 3868;
const METHODS: [&[&str]; 8] = [
    &["-m"],
    &["-g"],
    &["-i"],
    &["--fullnat"],
    &["-i", "--tun-type", "gre"],
    &["-i", "--tun-type", "gre", "--tun-csum"],
    &["-i", "--tun-type", "gue", "--tun-port", "6080", "--tun-nocsum"],
    &["-i", "--tun-type", "gue", "--tun-port", "6080", "--tun-csum"],
];
/// The number of the real servers whose family is not their services'.
const TRANSLATED: u64 = 11 + METHODS.len() as u64;
/// Options of services: client address by PROXY or TOA, persistence, one-packet scheduling, SYN proxy.
const OPTIONS: [&[&str]; 6] = [
    &[],
    &["--client-address", "proxy"],
    &["--client-address", "toa"],
    &["-p", "60"],
    &["-o"],
    &["--syn-proxy", "on"],
];
/// Addresses of FULLNAT, and their ports.
const LOCALS: [&str; 2] = ["10.2.0.200", "fd00:2::c8"];
const LOCAL_PORTS: std::ops::Range<u16> = 1024..1032;
const SCHEDULERS: [&str; 6] = ["rr", "wrr", "wlc", "sh", "mh", "sed"];

/// The address of a real server.
fn real_server(is_v6: bool, number: u64) -> String {
    if is_v6 { format!("[fd00:2::{number}]") } else { format!("10.2.0.{number}") }
}

/// Adds, changes or removes something; the command may be refused.
fn command(lab: &mut BothPaths, random: &mut Random) {
    let (protocol, addr) = (*random.of(&PROTOCOLS), *random.of(&VIRTUAL));
    let service = format!("{addr}:{}", random.of(&PORTS));
    let number = 11 + random.below(METHODS.len() as u64 + 1);
    let (mut dest, mut method) = (real_server(addr.starts_with('['), number), *random.of(&METHODS));
    if number == TRANSLATED {
        (dest, method) = (real_server(!addr.starts_with('['), number), &["--fullnat"]);
    }
    let weight = random.below(3).to_string();
    let options = *random.of(&OPTIONS);
    let scheduler = *random.of(&SCHEDULERS);
    let line = match random.below(6) {
        0 => [&["-A", protocol, &service, "-s", scheduler][..], options].concat(),
        1 => [&["-E", protocol, &service, "-s", scheduler][..], options].concat(),
        2 => vec!["-d", protocol, &service, "-r", &dest],
        3 => [&["-e", protocol, &service, "-r", &dest, "-w", &weight][..], method].concat(),
        _ => [&["-a", protocol, &service, "-r", &dest, "-w", &weight][..], method].concat(),
    };
    ask(lab, json!({ "adm": line }));
}

/// A lab with the recordings' network, a VLAN on each side, and a service of each protocol, port and method; some of
/// them on the director itself, some for single datagrams.
fn lab(topology: &Value) -> BothPaths {
    let mut lab = BothPaths::new();
    recording::network(topology).into_iter().for_each(|request| drop(ask(&mut lab, request)));
    for link in LINKS {
        ask(&mut lab, json!({ "link": format!("{link}.5"), "vlan": 5, "over": link }));
    }
    for local in LOCALS {
        let ports = format!("{}-{}", LOCAL_PORTS.start, LOCAL_PORTS.end - 1);
        let added = ask(&mut lab, json!({ "xvs": ["laddr", "add", local, "--ports", ports] }));
        assert_eq!(added["exit"], 0, "{added}");
    }
    // The recordings have two real servers.
    for number in 11..=TRANSLATED {
        for server in [format!("10.2.0.{number}"), format!("fd00:2::{number}")] {
            ask(&mut lab, json!({ "neighbor": server, "mac": "02:00:00:00:02:13", "link": LINKS[1] }));
        }
    }
    for addr in VIRTUAL {
        for (protocol, port) in PROTOCOLS.iter().flat_map(|protocol| PORTS.map(|port| (*protocol, port))) {
            let service = format!("{addr}:{port}");
            let single = match (protocol, port) {
                ("-u", 443) => vec!["-o"],
                ("-t", 80) => vec!["--client-address", "proxy"],
                ("-t", 53) => vec!["--client-address", "toa"],
                ("-t", PROXIED) => vec!["--syn-proxy", "on"],
                ("-u", 53) => vec!["-p", "60"],
                _ => vec![],
            };
            let add = [vec!["-A", protocol, &service, "-s", "rr"], single].concat();
            ask(&mut lab, json!({ "adm": add }));
            let translated = (TRANSLATED, &["--fullnat"][..]);
            for (number, method) in (11..).zip(METHODS).chain([translated]) {
                let is_v6 = addr.starts_with('[') != (number == TRANSLATED);
                let dest = format!("{}:{port}", real_server(is_v6, number));
                let add = [&["-a", protocol, &service, "-r", &dest][..], method].concat();
                let added = ask(&mut lab, json!({ "adm": add }));
                let fits = (protocol, port) != ("-t", PROXIED) || ["-m", "--fullnat"].contains(&method[0]);
                assert_eq!(added["exit"] == 0, fits, "{added}");
            }
            if protocol == "-u" && [53, 80, 443].contains(&port) {
                with_connection_ids(&mut lab, &service, port);
            }
            if port == 443 {
                ask(&mut lab, json!({ "adm": ["-a", protocol, service, "-r", service, "-g"] }));
            }
        }
    }
    lab
}

/// Lets the second byte of a datagram name some real servers of a UDP service, as if it were one of QUIC.
fn with_connection_ids(lab: &mut BothPaths, service: &str, port: u16) {
    for config in 0..7 {
        let line = format!("quic add -u {service} --config {config} --server-id-length 1 --nonce-length 4");
        ask(lab, json!({ "xvs": line.split(' ').collect::<Vec<_>>() }));
    }
    for (id, number) in (0..).step_by(32).zip(11..TRANSLATED) {
        let addr = real_server(service.starts_with('['), number);
        let line = format!("quic server-id -u {service} -r {addr}:{port} {id:02x}");
        let added = ask(lab, json!({ "xvs": line.split(' ').collect::<Vec<_>>() }));
        assert_eq!(added["exit"], 0, "{added}");
    }
}

fn ask(lab: &mut BothPaths, request: Value) -> Value {
    lab.ask(&request)
}

/// The frames that are changed at random.
pub struct Seeds {
    frames: Vec<(&'static str, Vec<u8>)>,
    /// What TCP answers to the frames of the last burst.
    answers: Vec<(&'static str, Vec<u8>)>,
    topology: Value,
}

/// Every received frame of the recordings.
///
/// # Panics
/// If they cannot be read.
pub fn recorded() -> Seeds {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the recordings")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    paths.sort();
    let (mut frames, mut topology) = (BTreeSet::new(), Value::Null);
    for path in paths {
        let text = std::fs::read_to_string(path).expect("a recording");
        let recording: Value = serde_json::from_str(&text).expect("recordings are JSON");
        let truth = &recording["truth"];
        for step in truth["steps"].as_array().into_iter().flatten() {
            let link = LINKS.into_iter().find(|link| step["port"] == *link);
            if let (Some(link), Some(text)) = (link, step["in"].as_str()) {
                frames.insert((link, unhex(text)));
            }
        }
        if topology.is_null() {
            topology = truth["topology"].clone();
        }
    }
    Seeds { frames: frames.into_iter().collect(), answers: Vec::new(), topology }
}

impl Seeds {
    /// A director in their network, with services of every kind.
    pub fn lab(&self) -> BothPaths {
        lab(&self.topology)
    }

    /// A frame, mostly a recorded one that was changed in a few places; or an answer, or a SYN to the SYN proxy, each
    /// of them true or changed.
    pub fn frame(&mut self, random: &mut Random) -> (&'static str, Vec<u8>) {
        if random.below(48) == 0 {
            return self.syn(random);
        }
        let from = match random.below(6) {
            0 if !self.answers.is_empty() => &self.answers,
            _ => &self.frames,
        };
        let (link, seed) = random.of(from);
        if std::ptr::eq(from, &self.answers) && random.below(4) != 0 {
            return (link, seed.clone());
        }
        if random.below(64) == 0 {
            return (link, (0..random.below(200)).map(|_| random.draw() as u8).collect());
        }
        let mut frame = seed.clone();
        if link == &LINKS[1] && random.below(3) == 0 {
            answer_to_local(&mut frame, random);
        }
        if random.below(8) == 0 {
            make_fragment(&mut frame, random);
        }
        for _ in 0..random.below(5) {
            self.change(&mut frame, random);
        }
        if random.below(4) != 0 && frame.get(12..14) == Some(&[0x08, 0x00]) {
            resum(&mut frame);
        }
        frame.truncate(LONGEST);
        (link, frame)
    }

    /// A frame, or a datagram to a service, often enough that its flow is offloaded; then changed ones of the same
    /// flow, as far as they still are.
    fn insisting(
        &self,
        frame: &(&'static str, Vec<u8>),
        random: &mut Random,
    ) -> Vec<(&'static str, Vec<u8>)> {
        let (link, frame) = if random.below(2) == 0 { frame.clone() } else { self.datagram(random) };
        let mut frames = vec![(link, frame); 8];
        for (_, frame) in &mut frames[4..] {
            self.change(frame, random);
            if random.below(4) != 0 && frame.get(12..14) == Some(&[0x08, 0x00]) {
                resum(frame);
            }
            frame.truncate(LONGEST);
        }
        frames
    }

    /// Whether a frame comes by another link than that of its link address.
    fn is_astray(&self, (link, frame): &(&'static str, Vec<u8>)) -> bool {
        let of_other = |other: &&str| {
            let mac = self.topology["director"][*other]["mac"].as_str().expect("a link address");
            let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("two digits"));
            *other != *link && frame.len() >= 6 && bytes.eq(frame[..6].iter().copied())
        };
        LINKS.iter().any(of_other)
    }

    /// A client's datagram to a service.
    fn datagram(&self, random: &mut Random) -> (&'static str, Vec<u8>) {
        let dest = format!("{}:{}", random.of(&VIRTUAL), random.of(&PORTS)).parse().expect("an endpoint");
        self.of_client(Transport::Udp, dest, random)
    }

    /// A client's SYN to a service behind the SYN proxy.
    fn syn(&self, random: &mut Random) -> (&'static str, Vec<u8>) {
        let dest = format!("{}:{PROXIED}", random.of(&VIRTUAL)).parse().expect("an endpoint");
        self.of_client(Transport::Tcp(SYN), dest, random)
    }

    /// A client's packet in a frame.
    fn of_client(
        &self,
        transport: Transport,
        dest: SocketAddr,
        random: &mut Random,
    ) -> (&'static str, Vec<u8>) {
        let of_client = self.frames.iter().find(|(link, frame)| *link == LINKS[0] && frame.len() > 14);
        let (_, frame) = of_client.expect("the recordings have clients");
        let (to, from) = frame[..12].split_at(6);
        let mac = |bytes: &[u8]| bytes.try_into().expect("six bytes");
        let client = if dest.is_ipv4() { "198.51.100.7" } else { "2001:db8::7" }.parse().expect("an address");
        let source = SocketAddr::new(client, 1024 + random.below(4096) as u16);
        let datagram = Datagram { dont_fragment: true, ..Datagram::new(transport, source, dest) };
        (LINKS[0], datagram.frame(mac(from), mac(to)))
    }

    fn change(&self, frame: &mut Vec<u8>, random: &mut Random) {
        if frame.is_empty() {
            return;
        }
        // Mostly in the headers, which the director parses.
        let within = frame.len().min(120);
        let at = random.below(within as u64) as usize;
        match random.below(12) {
            0..3 => frame[at] = random.draw() as u8,
            3 => frame[at] ^= 1 << random.below(8),
            4 => frame[at] = *random.of(&[0, 1, 4, 0x0f, 0x45, 0x60, 0x7f, 0x80, 0xff]),
            // The ports of a packet without IP options: makes other flows.
            5 | 6 if frame.len() > 35 => frame[35] = random.draw() as u8,
            7 => frame.truncate(at),
            8 => frame.resize(frame.len() + at, 0xa5),
            9 if frame.len() >= 14 => {
                let vlan = random.below(7) as u8;
                drop(frame.splice(12..12, [0x81, *random.of(&[0, 0xe0]), 0, vlan]));
            }
            10 => {
                let (_, other) = random.of(&self.frames);
                frame.truncate(at);
                frame.extend(other.iter().skip(at));
            }
            _ if frame.len() > 24 => {
                frame[23] = *random.of(&[1, 4, 6, 17, 41, 44, 47, 50, 51, 58, 60, 132]);
            }
            _ => {}
        }
    }
}

/// What the receiver of a frame answers by TCP: to a SYN a SYN with an acknowledgement, to all else an acknowledgement.
fn answer((link, frame): &(String, Vec<u8>)) -> Option<(&'static str, Vec<u8>)> {
    let link = LINKS.into_iter().find(|side| link == side)?;
    let PacketHeaders { link: Some(LinkHeader::Ethernet2(ethernet)), net, transport, payload, .. } =
        PacketHeaders::from_ethernet_slice(frame).ok()?
    else {
        return None;
    };
    let TransportHeader::Tcp(mut tcp) = transport? else { return None };
    let length = payload.slice().len() as u32 + u32::from(tcp.syn) + u32::from(tcp.fin);
    (tcp.source_port, tcp.destination_port) = (tcp.destination_port, tcp.source_port);
    let next = tcp.sequence_number.wrapping_add(length);
    tcp.sequence_number = if tcp.ack { tcp.acknowledgment_number } else { 1_000_000 };
    tcp.acknowledgment_number = next;
    (tcp.syn, tcp.ack, tcp.fin, tcp.rst) = (tcp.syn && !tcp.ack, true, false, false);
    let (kind, packet) = match net? {
        NetHeaders::Ipv4(ip, _) => {
            tcp.checksum = tcp.calc_checksum_ipv4_raw(ip.destination, ip.source, &[]).ok()?;
            let header = Ipv4 { ttl: 64, tos: 0, id: 0, dont_fragment: true };
            let (from, to) = (ip.destination.into(), ip.source.into());
            (EtherType::IPV4, header.packet(IpNumber::TCP, from, to, &tcp.to_bytes()))
        }
        NetHeaders::Ipv6(ip, _) => {
            tcp.checksum = tcp.calc_checksum_ipv6_raw(ip.destination, ip.source, &[]).ok()?;
            let header = Ipv6 { hop_limit: 64, traffic_class: 0 };
            let (from, to) = (ip.destination.into(), ip.source.into());
            (EtherType::IPV6, header.packet(IpNumber::TCP, from, to, &tcp.to_bytes()))
        }
        NetHeaders::Arp(_) => return None,
    };
    Some((link, crate::frames::ethernet(ethernet.destination, ethernet.source, kind, &packet)))
}

/// Redirects a server's frame to a local endpoint instead of the client, and makes a quoted packet come from there.
fn answer_to_local(frame: &mut [u8], random: &mut Random) {
    let local = LOCALS.map(|text| text.parse::<IpAddr>().expect("an address"));
    let (range, local) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (30..34, octets(local[0])),
        Some([0x86, 0xdd]) => (38..54, octets(local[1])),
        _ => return,
    };
    let Some(client) = frame.get(range.clone()).map(<[u8]>::to_vec) else { return };
    let ports = range.end + 2..range.end + 4;
    for at in 14..frame.len().saturating_sub(local.len()) {
        if frame[at..].starts_with(&client) {
            frame[at..at + local.len()].copy_from_slice(&local);
        }
    }
    let port = LOCAL_PORTS.start + random.below(LOCAL_PORTS.len() as u64) as u16;
    frame.get_mut(ports).into_iter().for_each(|field| field.copy_from_slice(&port.to_be_bytes()));
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Makes a packet a fragment of one of a few datagrams.
fn make_fragment(frame: &mut Vec<u8>, random: &mut Random) {
    let (units, more) = (random.below(4) as u8, random.below(2) as u8);
    match frame.get(12..14) {
        Some([0x08, 0x00]) if frame.len() > 34 => {
            frame[18..20].copy_from_slice(&[0, random.below(2) as u8]);
            frame[20..22].copy_from_slice(&[more << 5, units]);
        }
        Some([0x86, 0xdd]) if frame.len() > 54 => {
            let next = std::mem::replace(&mut frame[20], 44);
            let header = [next, 0, 0, units << 3 | more, 0, 0, 0, random.below(2) as u8];
            drop(frame.splice(54..54, header));
            let length = (frame.len() - 54) as u16;
            frame[18..20].copy_from_slice(&length.to_be_bytes());
        }
        _ => {}
    }
}

/// Capacity of a frame of the lab, in bytes.
const LONGEST: usize = 1700;

/// Pseudorandom numbers: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// One of some choices.
    pub fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}
