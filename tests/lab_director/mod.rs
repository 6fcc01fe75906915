//! A director in the lab with a client and two real servers, and packets of a few bytes to send through it.
//!
//! Made by each test for itself, in milliseconds. Packets carry whatever transport bytes a test gives, right or
//! wrong; IPv4 headers are written by `etherparse`. Not here: what must come out.

use std::net::Ipv4Addr;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header};
use serde_json::{Value, json};
use xvs_ctl::lab::Lab;

/// The virtual address.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A client.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The real servers.
pub(crate) const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 11), Ipv4Addr::new(203, 0, 113, 12)];

/// Where the transport header of a frame of these tests begins.
pub(crate) const TRANSPORT: usize = 34;

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fate {
    /// `transmit`, `pass` or `drop REASON`.
    pub(crate) verdict: String,
    /// The frames that left because of it.
    pub(crate) sent: Vec<Vec<u8>>,
}

/// A director in the lab with its network.
pub(crate) struct Director {
    lab: Lab,
}

impl Director {
    /// With links `wan` to the client and `lan` to the servers; these `ipvsadm` lines have been carried out.
    pub(crate) fn with(lines: &[String]) -> Self {
        let mut director = Self { lab: Lab::new() };
        let links = [
            ("wan", "02:00:00:00:01:01", "192.0.2.1/24", vec![CLIENT]),
            ("lan", "02:00:00:00:02:01", "203.0.113.1/24", SERVERS.to_vec()),
        ];
        for (link, mac, address, neighbours) in links {
            director.ok(json!({ "link": link, "mac": mac, "addresses": [address] }));
            for neighbour in neighbours {
                director.ok(json!({ "neighbor": neighbour, "mac": "02:00:00:00:09:09", "link": link }));
            }
        }
        lines.iter().for_each(|line| assert_eq!(director.adm(line), "", "ipvsadm {line}"));
        director
    }

    /// Sets a key of `[ipvs]`.
    pub(crate) fn set(&mut self, key: &str, value: u32) {
        self.ok(json!({ "set": { key: value } }));
    }

    /// Lets seconds pass.
    pub(crate) fn advance(&mut self, seconds: f64) {
        self.ask(json!({ "advance": seconds }));
    }

    /// Runs an `ipvsadm` line; what it printed.
    pub(crate) fn adm(&mut self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = self.ask(json!({ "adm": words }));
        assert_eq!(answer["exit"], 0, "ipvsadm {line}: {answer}");
        answer["stdout"].as_str().expect("a text").to_owned()
    }

    /// A client's packet comes in.
    pub(crate) fn from_client(&mut self, protocol: IpNumber, segment: &[u8]) -> Fate {
        self.inject("wan", [2, 0, 0, 0, 1, 1], protocol, CLIENT, VIP, segment)
    }

    /// A packet from the server of this number (0 or 1) to the client comes in.
    pub(crate) fn from_server(&mut self, server: usize, protocol: IpNumber, segment: &[u8]) -> Fate {
        self.inject("lan", [2, 0, 0, 0, 2, 1], protocol, SERVERS[server], CLIENT, segment)
    }

    fn inject(
        &mut self,
        link: &str,
        mac: [u8; 6],
        protocol: IpNumber,
        from: Ipv4Addr,
        to: Ipv4Addr,
        segment: &[u8],
    ) -> Fate {
        let ethernet =
            Ethernet2Header { source: [2, 0, 0, 0, 9, 9], destination: mac, ether_type: EtherType::IPV4 };
        let length = u16::try_from(segment.len()).expect("a short segment");
        let mut header = Ipv4Header::new(length, 64, protocol, from.octets(), to.octets()).expect("short");
        header.header_checksum = header.calc_header_checksum();
        let frame = [&ethernet.to_bytes()[..], &header.to_bytes(), segment].concat();
        let answer = self.ask(json!({ "inject": link, "frame": hex(&frame) }));
        let verdict = answer["verdict"].as_str().expect("a verdict");
        let verdict = match answer["reason"].as_str() {
            Some(reason) => format!("{verdict} {reason}"),
            None => verdict.to_owned(),
        };
        let frames = answer["tx"].as_array().expect("frames").iter();
        Fate { verdict, sent: frames.map(|frame| unhex(frame["frame"].as_str().expect("hex"))).collect() }
    }

    /// The rows of `-Lnc`, with one blank between columns.
    pub(crate) fn connections(&mut self) -> Vec<String> {
        let listing = self.adm("-L -n -c");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        listing.lines().skip(2).map(words).collect()
    }

    /// Time left and state of the only connection.
    pub(crate) fn only_connection(&mut self) -> (String, String) {
        let rows = self.connections();
        let [row] = &rows[..] else { panic!("{rows:?}") };
        let mut words = row.split(' ').skip(1).map(str::to_owned);
        (words.next().expect("a time"), words.next().expect("a state"))
    }

    /// `ActiveConn` and `InActConn`, summed over all destinations.
    pub(crate) fn load(&mut self) -> (u64, u64) {
        let listing = self.adm("-L -n");
        let dests = listing.lines().skip(3).filter_map(|line| line.strip_prefix("  -> "));
        dests.fold((0, 0), |(active, inactive), line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            (active + number(3), inactive + number(4))
        })
    }

    fn ask(&mut self, request: Value) -> Value {
        serde_json::from_str(&self.lab.answer(&request.to_string())).expect("the lab answers JSON")
    }

    fn ok(&mut self, request: Value) {
        let answer = self.ask(request.clone());
        assert_eq!(answer, json!({ "ok": true }), "{request}");
    }
}

/// A service on port `port` of the virtual address with the first `servers` real servers, as `ipvsadm` lines.
pub(crate) fn service(protocol: &str, port: u16, servers: usize, dest: &str) -> Vec<String> {
    let service = format!("{protocol} {VIP}:{port}");
    let mut lines = vec![format!("-A {service} -s rr")];
    // The one added last is asked first.
    lines.extend(SERVERS[..servers].iter().rev().map(|server| {
        let (port, method) = dest.split_once(' ').expect("PORT METHOD");
        format!("-a {service} -r {server}:{port} {method}")
    }));
    lines
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}
