//! A cluster around a director in the lab: a client behind a gateway, real servers beside it, time moved by hand.
//!
//! Each test makes its own, in milliseconds, without root. After each injected frame, the balance of the director's
//! counters is checked: received + originated = transmitted + passed + consumed + dropped.
//! Not here: frames' bytes ([`crate::frames`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};
use xvs_cli::lab::Lab;
use xvs_dataplane::steering::SteeringRules;
use xvs_proto::network::Network;

use crate::BothPaths;

use crate::frames::{Datagram, Mac, hex, unhex};

/// The virtual address; no interface has it.
pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A client, behind [`GATEWAY_MAC`].
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
/// The director's address towards the servers.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The director's address towards clients.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The director's interface towards clients.
pub const WAN_MAC: Mac = [2, 0, 0, 0, 1, 1];
/// The link address of the router to clients.
pub const GATEWAY_MAC: Mac = [2, 0, 0, 0, 1, 0xfe];
/// The director's interface towards the servers.
pub const LAN_MAC: Mac = [2, 0, 0, 0, 2, 1];

/// An address beside the servers that answers no ARP.
pub const SILENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
/// An address without a route.
pub const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);

/// The same in IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
/// As [`CLIENT`], in IPv6.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0xc8);
/// As [`INSIDE`], in IPv6.
pub const INSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// As [`OUTSIDE`], in IPv6.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// The real server of this number, from 1 to 9.
pub fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10 + number)
}

/// The same in IPv6.
pub fn server6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 10 + u16::from(number))
}

/// Its link address.
pub fn server_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 2, 10 + number]
}

/// An address with a port.
pub fn at(addr: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), port)
}

/// A director in the lab with its network.
pub struct LabCluster {
    lab: BothPaths,
}

/// The result of an injected frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// `transmit`, `pass`, `consumed` or `drop REASON`.
    pub verdict: String,
    /// The frames sent because of it, each with its link.
    pub sent: Vec<(String, Vec<u8>)>,
    /// The increase of every counter that changed.
    pub moved: BTreeMap<String, u64>,
}

impl Default for LabCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl LabCluster {
    /// Links `wan` and `lan` of 1500 bytes, a route to clients, nine servers.
    pub fn new() -> Self {
        Self::with_mtu(1500)
    }

    /// As [`Self::new`], with this MTU on `lan`, in bytes.
    pub fn with_mtu(lan: u32) -> Self {
        Self::of(BothPaths::new(), lan)
    }

    /// As [`Self::new`], with this lab.
    pub fn beside(lab: BothPaths) -> Self {
        Self::of(lab, 1500)
    }

    fn of(lab: BothPaths, lan: u32) -> Self {
        let mut cluster = Self { lab };
        let colons = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        let (outside, inside) = (
            [format!("{OUTSIDE}/25"), format!("{OUTSIDE6}/64")],
            [format!("{INSIDE}/24"), format!("{INSIDE6}/64")],
        );
        cluster.ok(json!({ "link": "wan", "mac": colons(WAN_MAC), "addresses": outside }));
        cluster.ok(json!({ "link": "lan", "mac": colons(LAN_MAC), "addresses": inside, "mtu": lan }));
        cluster.ok(json!({ "neighbor": "192.0.2.126", "mac": colons(GATEWAY_MAC), "link": "wan" }));
        cluster.ok(json!({ "route": "192.0.2.128/25", "via": "192.0.2.126", "link": "wan" }));
        cluster.ok(json!({ "neighbor": "2001:db8:1::fe", "mac": colons(GATEWAY_MAC), "link": "wan" }));
        cluster.ok(json!({ "route": "2001:db8:c::/48", "via": "2001:db8:1::fe", "link": "wan" }));
        for number in 1..=9 {
            for addr in [IpAddr::from(server(number)), server6(number).into()] {
                let mac = colons(server_mac(number));
                cluster.ok(json!({ "neighbor": addr, "mac": mac, "link": "lan" }));
            }
        }
        // No limit of ICMP errors.
        cluster.ok(json!({ "set": { "icmp_msgs_per_sec": 0 } }));
        cluster
    }

    /// A cluster of a lab that has its network and services already.
    pub fn around(lab: BothPaths) -> Self {
        Self { lab }
    }

    /// The lab itself, from now on without a double.
    pub fn lab(&mut self) -> &mut Lab {
        self.lab.alone()
    }

    /// The number of frames of the last burst that could not take the fast path.
    pub fn general_path(&self) -> usize {
        self.lab.general_path()
    }

    /// Has the drivers of all interfaces leave checksums to a device.
    pub fn leave_checksums(&mut self) {
        let leave = |network: &mut Network| {
            network.links.iter_mut().for_each(|link| link.partial_checksums = true);
        };
        self.change_network(leave);
    }

    /// Changes the network in a way for which the lab has no request.
    ///
    /// # Panics
    /// If the network is not valid then.
    pub fn change_network(&mut self, change: impl Fn(&mut Network)) {
        self.lab.change_network(change);
    }

    /// What the XDP program would steer now.
    pub fn steering_rules(&mut self) -> &SteeringRules {
        self.lab.steering_rules()
    }

    /// Sends a request to the lab.
    ///
    /// # Panics
    /// If the answer is not JSON.
    pub fn ask(&mut self, request: Value) -> Value {
        self.lab.ask(&request)
    }

    /// Sends a request whose answer has no content.
    ///
    /// # Panics
    /// If it was not carried out.
    pub fn ok(&mut self, request: Value) {
        let answer = self.ask(request.clone());
        assert_eq!(answer, json!({ "ok": true }), "{request}");
    }

    /// Runs `ipvsadm` with the arguments in `line` and returns its output.
    ///
    /// # Panics
    /// If it failed.
    pub fn adm(&mut self, line: &str) -> String {
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = self.ask(json!({ "adm": words }));
        assert_eq!((&answer["exit"], &answer["stderr"]), (&json!(0), &json!("")), "ipvsadm {line}: {answer}");
        answer["stdout"].as_str().unwrap_or_default().to_owned()
    }

    /// Runs `xvs` with the arguments in `line` and returns its output.
    ///
    /// # Panics
    /// If it failed.
    #[track_caller]
    pub fn xvs(&mut self, line: &str) -> String {
        let (exit, text) = self.xvs_reading(line);
        assert_eq!(exit, 0, "xvs {line}: {text}");
        text
    }

    /// Runs `xvs` with the arguments in `line` and returns its exit code, and the text on both streams.
    ///
    /// # Panics
    /// If the answer is not one of a program.
    #[track_caller]
    pub fn xvs_reading(&mut self, line: &str) -> (u64, String) {
        let answer = self.ask(json!({ "xvs": line.split_whitespace().collect::<Vec<_>>() }));
        let text = |name: &str| answer[name].as_str().expect("a text").to_owned();
        (answer["exit"].as_u64().expect("a code"), text("stdout") + &text("stderr"))
    }

    /// Runs several `ipvsadm` lines that print nothing.
    ///
    /// # Panics
    /// As [`Self::adm`].
    pub fn configure(&mut self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.adm(line), "", "ipvsadm {line}");
        }
    }

    /// Sets a key of `[ipvs]`.
    ///
    /// # Panics
    /// If it is refused.
    pub fn set(&mut self, key: &str, value: u32) {
        self.ok(json!({ "set": { key: value } }));
    }

    /// Advances time.
    ///
    /// # Panics
    /// If timers sent a frame: only the timer of an incomplete datagram does.
    pub fn advance(&mut self, seconds: f64) {
        assert_eq!(self.wait(seconds), []);
    }

    /// Advances time; returns the frames that timers sent.
    ///
    /// # Panics
    /// If the counters do not balance afterwards.
    pub fn wait(&mut self, seconds: f64) -> Vec<(String, Vec<u8>)> {
        let answer = self.ask(json!({ "advance": seconds }));
        assert_eq!(answer["ok"], true, "{answer}");
        assert_balance(&self.counters());
        answer["tx"].as_array().expect("frames").iter().map(sent).collect()
    }

    /// Injects a client's packet.
    pub fn from_client(&mut self, datagram: &Datagram) -> Judged {
        self.inject("wan", &datagram.frame(GATEWAY_MAC, WAN_MAC))
    }

    /// Injects a server's packet.
    pub fn from_server(&mut self, datagram: &Datagram) -> Judged {
        self.inject("lan", &datagram.frame(server_mac(1), LAN_MAC))
    }

    /// Injects frames as one burst.
    ///
    /// # Panics
    /// If the counters do not balance afterwards.
    pub fn burst(&mut self, link: &str, frames: &[&[u8]]) {
        self.lab.burst(link, frames);
        assert_balance(&self.counters());
    }

    /// Injects a frame.
    ///
    /// # Panics
    /// If the counters do not balance afterwards, or contradict the verdict.
    pub fn inject(&mut self, link: &str, frame: &[u8]) -> Judged {
        let before = self.counters();
        let answer = self.ask(json!({ "inject": link, "frame": hex(frame) }));
        assert!(answer.get("error").is_none(), "{answer}");
        let sent: Vec<_> = answer["tx"].as_array().expect("frames").iter().map(sent).collect();
        let after = self.counters();
        assert_balance(&after);
        let count = |name: &String| before.get(name).copied().unwrap_or(0);
        // The gauge of held frames decreases again; all others only increase.
        let counting = after.iter().filter(|(name, _)| *name != "held");
        let difference = counting.map(|(name, value)| (name.clone(), value - count(name)));
        let moved: BTreeMap<_, _> = difference.filter(|(_, by)| *by != 0).collect();
        let moved_by = |name: &str| moved.get(name).copied().unwrap_or(0);
        let verdict = match &answer["reason"] {
            Value::String(reason) => format!("{} {reason}", text(&answer["verdict"])),
            _ => text(&answer["verdict"]),
        };
        assert_eq!(moved_by("rx_packets"), 1, "{answer}");
        assert_eq!(moved_by("tx_packets"), sent.len() as u64, "{answer}");
        // A datagram's earlier fragments have the verdict of its last one.
        assert_eq!(moved_by("passed_to_kernel") > 0, verdict == "pass", "{answer}");
        if let Some(reason) = verdict.strip_prefix("drop ") {
            assert!(moved_by(&format!("drop_{reason}")) > 0, "{answer}");
        }
        Judged { verdict, sent, moved }
    }

    /// Every counter that is not zero.
    ///
    /// # Panics
    /// If the lab's answer is malformed.
    pub fn counters(&mut self) -> BTreeMap<String, u64> {
        let answer = self.ask(json!({ "counters": true }));
        let object = answer.as_object().expect("an object");
        object.iter().map(|(name, value)| (name.clone(), value.as_u64().expect("a count"))).collect()
    }

    /// `-Lnc`: the rows, sorted, with one blank between columns.
    pub fn connections(&mut self) -> Vec<String> {
        let mut rows = rows(&self.adm("-L -n -c"));
        rows.drain(..2);
        rows.sort();
        rows
    }

    /// Time left and state of the only connection, as `-Lnc` lists them.
    ///
    /// # Panics
    /// If there is none or another one.
    pub fn only_connection(&mut self) -> (String, String) {
        let rows = self.connections();
        let [row] = &rows[..] else { panic!("not one connection: {rows:?}") };
        let words: Vec<_> = row.split(' ').collect();
        (words[1].to_owned(), words[2].to_owned())
    }

    /// `-Ln --stats --exact` as rows `NAME CONNS INPKTS OUTPKTS INBYTES OUTBYTES`. Advances time by two seconds, the
    /// interval at which the estimators read the counters.
    pub fn stats(&mut self) -> Vec<String> {
        self.advance(2.0);
        let mut rows = rows(&self.adm("-L -n --stats --exact"));
        rows.drain(..3);
        rows
    }

    /// `ActiveConn` and `InActConn` of a destination, as `-Ln` lists them.
    ///
    /// # Panics
    /// If no service or several have it.
    pub fn load(&mut self, dest: SocketAddr) -> (u64, u64) {
        let found: Vec<_> = self.loads().into_iter().filter(|(name, ..)| *name == dest.to_string()).collect();
        let [(_, active, inactive)] = found[..] else { panic!("{dest}: {found:?}") };
        (active, inactive)
    }

    /// `ActiveConn` and `InActConn`, summed over all destinations.
    pub fn total_load(&mut self) -> (u64, u64) {
        let sum = |(a, b), (_, active, inactive): &(String, u64, u64)| (a + active, b + inactive);
        self.loads().iter().fold((0, 0), sum)
    }

    /// `ActiveConn` and `InActConn` of every destination, in the order listed.
    ///
    /// # Panics
    /// If the listing does not have its columns.
    pub fn loads(&mut self) -> Vec<(String, u64, u64)> {
        let listing = self.adm("-L -n");
        let dests = listing.lines().skip(3).filter_map(|line| line.strip_prefix("  -> "));
        dests
            .map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                let number = |at: usize| words[at].parse().expect("a number");
                (words[0].to_owned(), number(3), number(4))
            })
            .collect()
    }
}

/// Asserts that every received or originated frame has exactly one verdict, or is held.
///
/// # Panics
/// If the counters do not balance.
pub fn assert_balance(counters: &BTreeMap<String, u64>) {
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    let dropped: u64 =
        counters.iter().filter(|(name, _)| name.starts_with("drop_")).map(|(_, value)| value).sum();
    let came = count("rx_packets") + count("originated");
    let left = count("tx_packets") + count("passed_to_kernel") + count("consumed") + dropped + count("held");
    assert_eq!(came, left, "{counters:?}");
}

fn sent(frame: &Value) -> (String, Vec<u8>) {
    (text(&frame["link"]), unhex(&text(&frame["frame"])))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rows(listing: &str) -> Vec<String> {
    listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}
