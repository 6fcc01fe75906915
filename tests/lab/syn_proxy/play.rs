//! A client, a director with a service behind the SYN proxy, and a server, as their segments show them.

use std::net::IpAddr;

use etherparse::TcpOptionElement;
use etherparse::TcpOptionElement::{
    MaximumSegmentSize, SelectiveAcknowledgementPermitted as Sack, Timestamp, WindowScale,
};
use serde_json::json;
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, Judged, LAN_MAC, VIP, VIP6, WAN_MAC, server, server_mac,
    server6,
};
use xvs::{LabCluster, Segment};

pub(super) const CLIENT_PORT: u16 = 40_000;
pub(super) const LOCAL_PORT: u16 = 5000;
/// The numbers of the ends' SYNs: both wrap soon.
pub(super) const THEIRS: u32 = u32::MAX - 3;
pub(super) const SERVERS: u32 = u32::MAX - 5;
/// The timestamps of client and server at the start.
pub(super) const CLIENT_CLOCK: u32 = 0xffff_fff0;
pub(super) const SERVER_CLOCK: u32 = 0x8000_0000;

pub(super) struct Play {
    pub(super) cluster: LabCluster,
    pub(super) client: (IpAddr, u16),
    pub(super) vip: (IpAddr, u16),
    /// What the server sees as the client.
    pub(super) seen: (IpAddr, u16),
    pub(super) server: (IpAddr, u16),
}

impl Play {
    pub(super) fn new(v6: bool, method: &str, service: &str) -> Self {
        let mut cluster = LabCluster::new();
        let (client, vip, local, dest): (IpAddr, IpAddr, IpAddr, IpAddr) = match v6 {
            false => (CLIENT.into(), VIP.into(), INSIDE.into(), server(1).into()),
            true => (CLIENT6.into(), VIP6.into(), INSIDE6.into(), server6(1).into()),
        };
        let ports = format!("{LOCAL_PORT}-{LOCAL_PORT}");
        cluster.ask(json!({ "xvs": ["laddr", "add", local.to_string(), "--ports", ports] }));
        let at = |addr| std::net::SocketAddr::new(addr, 80);
        cluster.adm(&format!("-A -t {} -s rr {service}", at(vip)));
        cluster.adm(&format!("-a -t {} -r {} {method}", at(vip), at(dest)));
        let client = (client, CLIENT_PORT);
        let seen = if method == "--fullnat" { (local, LOCAL_PORT) } else { client };
        Self { cluster, client, vip: (vip, 80), seen, server: (dest, 80) }
    }

    /// All families and methods.
    pub(super) fn all(service: &str) -> impl Iterator<Item = Self> {
        [(false, "-m"), (true, "-m"), (false, "--fullnat"), (true, "--fullnat")]
            .into_iter()
            .map(move |(v6, method)| Self::new(v6, method, service))
    }

    pub(super) fn request(&mut self, segment: &Segment) -> Judged {
        let frame = segment.frame(self.client, self.vip, (GATEWAY_MAC, WAN_MAC));
        self.cluster.inject("wan", &frame)
    }

    pub(super) fn reply(&mut self, segment: &Segment) -> Judged {
        let frame = segment.frame(self.server, self.seen, (server_mac(1), LAN_MAC));
        self.cluster.inject("lan", &frame)
    }

    pub(super) fn at_client(&self, sent: &(String, Vec<u8>)) -> Segment {
        assert_eq!((sent.0.as_str(), &sent.1[..6]), ("wan", &GATEWAY_MAC[..]));
        Segment::between(&sent.1, self.vip, self.client)
    }

    pub(super) fn at_server(&self, sent: &(String, Vec<u8>)) -> Segment {
        assert_eq!((sent.0.as_str(), &sent.1[..6]), ("lan", &server_mac(1)[..]));
        Segment::between(&sent.1, self.seen, self.server)
    }

    /// Sends a SYN; returns the director's answer.
    pub(super) fn answer(&mut self, options: Vec<TcpOptionElement>) -> (Segment, u16) {
        let judged = self.request(&Segment { options, ..syn() });
        assert_eq!(judged.verdict, "transmit");
        let [sent] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
        (self.at_client(sent), window(&sent.1))
    }

    /// Sends the end of the client's handshake; returns the SYN at the server.
    pub(super) fn acknowledge(&mut self, cookie: u32, options: Vec<TcpOptionElement>) -> Segment {
        let judged = self.request(&Segment { options, ..ack(cookie) });
        assert_eq!(judged.verdict, "transmit", "{judged:?}");
        let [sent] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
        assert_eq!(window(&sent.1), 64240.max(window(&sent.1)), "at least what the client has said");
        self.at_server(sent)
    }

    /// Sends the server's SYN+ACK; returns the ACK at the server, and the one that opens the client's window.
    pub(super) fn accept(&mut self, options: Vec<TcpOptionElement>) -> (Segment, Segment, u16) {
        let segment =
            Segment { syn: true, sequence: SERVERS, ack: Some(next()), options, ..Segment::default() };
        let judged = self.reply(&segment);
        assert_eq!(judged.verdict, "transmit", "{judged:?}");
        let [there, back] = &judged.sent[..] else { panic!("two frames: {judged:?}") };
        (self.at_server(there), self.at_client(back), window(&back.1))
    }

    /// A connection without options; returns the cookie.
    pub(super) fn connect(&mut self) -> u32 {
        let cookie = self.answer(vec![]).0.sequence;
        self.acknowledge(cookie, vec![]);
        self.accept(vec![]);
        cookie
    }
}

pub(super) fn syn() -> Segment {
    Segment { syn: true, sequence: THEIRS, ..Segment::default() }
}

pub(super) fn ack(cookie: u32) -> Segment {
    Segment { sequence: next(), ack: Some(cookie.wrapping_add(1)), ..Segment::default() }
}

/// The number of the client's first byte.
pub(super) fn next() -> u32 {
    THEIRS.wrapping_add(1)
}

/// The field of the window.
pub(super) fn window(frame: &[u8]) -> u16 {
    let tcp = if frame[12] == 0x86 { 54 } else { 34 };
    u16::from_be_bytes([frame[tcp + 14], frame[tcp + 15]])
}

/// What a modern client offers.
pub(super) fn modern(echo: u32) -> Vec<TcpOptionElement> {
    vec![
        MaximumSegmentSize(1440),
        Sack,
        Timestamp(CLIENT_CLOCK, echo),
        TcpOptionElement::Noop,
        WindowScale(7),
    ]
}

pub(super) fn without_padding(options: Vec<TcpOptionElement>) -> Vec<TcpOptionElement> {
    options.into_iter().filter(|option| *option != TcpOptionElement::Noop).collect()
}

/// The timestamps of a segment.
pub(super) fn timestamps(segment: &Segment) -> (u32, u32) {
    let found = segment.options.iter().find_map(|option| match option {
        Timestamp(own, echoed) => Some((*own, *echoed)),
        _ => None,
    });
    found.expect("timestamps")
}
