//! Settings that end connections before they time out: `drop_entry` and `expire_nodest_conn`, mostly in the lab.

use std::net::Ipv4Addr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use etherparse::EtherType;
use serde_json::{Value, json};
use xvs::frames::{Complaint, ethernet};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, LAN_MAC, WAN_MAC, at, server};
use xvs::{Datagram, LabCluster, Transport};
use xvs_cli::lab::Lab;
use xvs_ctl::sweep::Sweeper;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::conn::{Flags, NewConnection, Spare, Table, TableConfig};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::Snapshot;
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ForwardingMethod;

const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

struct Director(Lab);

impl Director {
    /// A TCP service at port 80 and a UDP service at port 53, each with one real server by direct routing.
    fn new() -> Self {
        let mut director = Self(Lab::new());
        for line in [
            json!({"link": "wan", "mac": "02:00:00:00:00:01", "addresses": ["203.0.113.1/24"]}),
            json!({"link": "lan", "mac": "02:00:00:00:00:02", "addresses": ["192.0.2.1/24"]}),
            json!({"neighbor": "192.0.2.11", "mac": "02:00:00:00:01:01", "link": "lan"}),
        ] {
            assert_eq!(director.ask(line)["ok"], true);
        }
        for line in [
            "-A -t 198.51.100.80:80 -s rr",
            "-a -t 198.51.100.80:80 -r 192.0.2.11:80 -g",
            "-A -u 198.51.100.80:53 -s rr",
            "-a -u 198.51.100.80:53 -r 192.0.2.11:53 -g",
        ] {
            director.adm(line);
        }
        director
    }

    fn ask(&mut self, line: Value) -> Value {
        serde_json::from_str(&self.0.answer(&line.to_string())).expect("the lab answers JSON")
    }

    fn adm(&mut self, line: &str) -> String {
        let words: Vec<_> = line.split(' ').collect();
        let answer = self.ask(json!({ "adm": words }));
        assert_eq!(answer["exit"], 0, "{answer}");
        answer["stdout"].as_str().expect("text").to_owned()
    }

    fn set(&mut self, key: &str, value: u32) {
        assert_eq!(self.ask(json!({"set": {key: value}}))["ok"], true);
    }

    fn advance(&mut self, seconds: f64) {
        assert_eq!(self.ask(json!({ "advance": seconds }))["ok"], true);
    }

    fn send(&mut self, protocol: u8, client: u8, flags: u8) {
        let answer = self.ask(json!({"inject": "wan", "frame": frame(protocol, client, flags)}));
        assert_eq!(answer["verdict"], "transmit", "{answer}");
    }

    fn connect(&mut self, client: u8) {
        self.send(TCP, client, SYN);
        self.send(TCP, client, ACK);
    }

    /// How many lines of listed connections contain this word.
    fn listed(&mut self, word: &str) -> usize {
        self.adm("-L -n -c").lines().filter(|line| line.contains(word)).count()
    }

    fn counter(&mut self, name: &str) -> usize {
        self.ask(json!({"counters": true}))[name].as_u64().unwrap_or(0) as usize
    }

    /// ActiveConn and InActConn of a service's one real server.
    fn load(&mut self, service: &str) -> (usize, usize) {
        let listing = self.adm(&format!("-L -n {service}"));
        let line = listing.lines().find(|line| line.contains("->") && line.contains("192.0.2.11"));
        let words: Vec<_> = line.expect("its real server").split_whitespace().collect();
        (words[4].parse().expect("a number"), words[5].parse().expect("a number"))
    }
}

fn frame(protocol: u8, client: u8, flags: u8) -> String {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x08, 0x00];
    let (port, rest): (u16, &[u8]) = match protocol {
        TCP => (80, &[0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]),
        _ => (53, &[0, 8, 0, 0]),
    };
    let length = 24 + rest.len() as u8;
    let mut header = vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend(Ipv4Addr::new(10, 0, 0, client).octets());
    header.extend(VIP.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
    frame.extend(header);
    frame.extend(4096_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(rest);
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn drop_entry_ends_half_open_connections_and_spares_active_ones() {
    let mut director = Director::new();
    (0..20).for_each(|client| director.connect(client));
    (20..60).for_each(|client| director.send(TCP, client, SYN));
    director.advance(50.0);
    assert_eq!(director.listed("SYN_RECV"), 40, "nothing is swept while the setting is off");
    director.set("drop_entry", 3);
    (0..20).for_each(|client| director.send(TCP, client, ACK));
    (20..60).for_each(|client| director.send(TCP, client, SYN));
    director.advance(55.0);
    let left = director.listed("SYN_RECV");
    assert!(left < 20, "{left} of 40 are left after 55 seconds of 1/32 each");
    assert_eq!(director.counter("swept_worthless"), 40 - left);
    assert_eq!(director.load("-t 198.51.100.80:80"), (20 + left, 0));
    assert_eq!(director.listed("ESTABLISHED"), 20);
}

#[test]
fn drop_entry_ends_connections_idle_for_a_minute_unless_they_carried_many_packets() {
    let mut director = Director::new();
    director.set("drop_entry", 3);
    (0..30).for_each(|client| director.send(UDP, client, 0));
    for _ in 0..9 {
        (30..60).for_each(|client| director.send(UDP, client, 0));
    }
    director.advance(59.0);
    assert_eq!(director.listed("UDP"), 60);
    director.advance(200.0);
    let left = director.listed("UDP");
    assert!((30..40).contains(&left), "{left}");
    assert_eq!(director.counter("swept_worthless"), 60 - left);
    assert_eq!(director.load("-u 198.51.100.80:53"), (0, left));
}

#[test]
fn drop_entry_ends_half_open_connections_without_a_destination_too() {
    let config = TableConfig { capacity: 1000, workers: 1, memory: Memory::OnDemand };
    let table = Table::create(config).expect("a small table");
    let mut worker = table.handle(0).expect("its seat");
    for port in 0..100 {
        worker.insert(&NewConnection {
            protocol: Protocol::TCP,
            client: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), port),
            virtual_endpoint: Endpoint::new(VIP, 80),
            dest: Endpoint::new(Ipv4Addr::UNSPECIFIED, 0),
            local: None,
            method: ForwardingMethod::DirectRouting,
            flags: Flags::NONE,
            state: TcpState::SynRecv as u8,
            expires: Millis(3_600_000),
            spare: Spare::NONE,
            dest_ref: u32::MAX,
            mark: 7,
            controller: None,
        });
    }
    let mut snapshot = Snapshot::default();
    snapshot.settings.drops_entries = true;
    let reader = table.reader().expect("a seat for a reader");
    let mut sweeper = Sweeper::new(reader, Arc::new(ArcSwap::from_pointee(snapshot)), 1);
    for second in 1..600 {
        sweeper.run(Millis(second * 1000));
    }
    assert_eq!((table.live(), sweeper.counters().worthless.value()), (0, 100));
}

#[test]
fn connections_of_a_removed_server_end_soon_if_set_and_no_others() {
    let mut director = Director::new();
    (0..50).for_each(|client| director.connect(client));
    (0..50).for_each(|client| director.send(UDP, client, 0));
    director.adm("-d -t 198.51.100.80:80 -r 192.0.2.11:80");
    director.advance(5.0);
    assert_eq!(director.listed("ESTABLISHED"), 50, "they stay while the setting is off");
    director.adm("-a -t 198.51.100.80:80 -r 192.0.2.11:80 -g");
    assert_eq!(director.load("-t 198.51.100.80:80"), (50, 0));
    director.set("expire_nodest_conn", 1);
    director.advance(5.0);
    assert_eq!(director.listed("ESTABLISHED"), 50, "a server that is there keeps them");
    director.adm("-d -t 198.51.100.80:80 -r 192.0.2.11:80");
    director.advance(0.5);
    assert_eq!((director.listed("ESTABLISHED"), director.listed("UDP")), (0, 50));
    assert_eq!((director.counter("swept_orphaned"), director.counter("expired")), (50, 0));
    director.adm("-a -t 198.51.100.80:80 -r 192.0.2.11:80 -g");
    assert_eq!(director.load("-t 198.51.100.80:80"), (0, 0));
}

#[test]
fn the_setting_at_the_removal_decides_and_connections_end_20_ms_later() {
    let mut director = Director::new();
    (0..50).for_each(|client| director.connect(client));
    director.set("expire_nodest_conn", 1);
    director.adm("-d -t 198.51.100.80:80 -r 192.0.2.11:80");
    director.set("expire_nodest_conn", 0);
    director.advance(0.019);
    assert_eq!(director.counter("swept_orphaned"), 0);
    director.advance(0.001);
    assert_eq!(director.counter("swept_orphaned"), 50, "though it is off again");
    director.advance(0.5);
    director.adm("-a -t 198.51.100.80:80 -r 192.0.2.11:80 -g");
    (50..100).for_each(|client| director.connect(client));
    director.adm("-d -t 198.51.100.80:80 -r 192.0.2.11:80");
    director.set("expire_nodest_conn", 1);
    director.advance(5.0);
    assert_eq!(director.listed("ESTABLISHED"), 50, "it was off at the removal");
    // Another removal ends those of all removed servers, as under IPVS.
    director.adm("-D -u 198.51.100.80:53");
    director.advance(0.02);
    assert_eq!(director.counter("swept_orphaned"), 100);
}

#[test]
fn connections_of_a_removed_service_end_too() {
    let mut director = Director::new();
    (0..50).for_each(|client| director.send(UDP, client, 0));
    director.set("expire_nodest_conn", 1);
    director.adm("-D -u 198.51.100.80:53");
    director.advance(0.5);
    assert_eq!((director.listed("UDP"), director.counter("swept_orphaned")), (0, 50));
}

/// A cluster with `expire_nodest_conn` and an established connection to its only server, by NAT.
fn with_one_connection() -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.set("expire_nodest_conn", 1);
    cluster.adm(&format!("-A -t {VIP}:80 -s rr -p 600"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(1)));
    for flags in [SYN, ACK] {
        assert_eq!(cluster.from_client(&to_vip(flags)).verdict, "transmit");
    }
    cluster
}

fn to_vip(flags: u8) -> Datagram {
    Datagram::new(Transport::Tcp(flags), at(CLIENT, 1000), at(VIP, 80))
}

/// Source: recordings `churn-323`, `fuzz-67`.
#[test]
fn a_server_that_is_added_again_within_20_ms_keeps_its_connections() {
    let (server, service) = (format!("{}:80", server(1)), format!("-t {VIP}:80"));
    let add = format!("-a {service} -r {server} -m");
    let ways: [(&str, &[&str]); 3] = [
        (&format!("-d {service} -r {server}"), &[&add]),
        (&format!("-D {service}"), &[&format!("-A {service} -s rr -p 600"), &add]),
        ("-C", &[&format!("-A {service} -s rr -p 600"), &add]),
    ];
    for (remove, restore) in ways {
        for (away, kept) in [(0.001, 2), (0.019, 2), (0.020, 0), (0.1, 0)] {
            let mut cluster = with_one_connection();
            cluster.adm(remove);
            cluster.advance(away);
            cluster.configure(restore);
            cluster.advance(1.0);
            assert_eq!(cluster.connections().len(), kept, "{remove}, {away} s");
            if kept > 0 {
                let judged = cluster.from_client(&to_vip(ACK));
                assert_eq!(judged.verdict, "transmit", "{remove}, {away} s");
                assert_eq!(cluster.load(at(xvs::lab_cluster::server(1), 80)), (1, 0));
            }
        }
    }
}

#[test]
fn icmp_errors_follow_a_connection_until_the_flush_that_a_removal_queues() {
    let mut cluster = with_one_connection();
    let reply = Datagram::new(Transport::Tcp(ACK), at(VIP, 80), at(CLIENT, 1000)).frame(LAN_MAC, WAN_MAC);
    let router = Ipv4Addr::new(192, 0, 2, 254);
    let error = Complaint::HOST_UNREACHABLE.about(&reply[14..], router, 7);
    let error = ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV4, &error);
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    cluster.advance(0.019);
    assert_eq!(cluster.inject("wan", &error).verdict, "transmit");
    cluster.advance(0.001);
    assert_eq!(cluster.inject("wan", &error).verdict, "pass");
}

/// A removal that finds a flush queued does not put it off.
#[test]
fn removals_one_after_the_other_share_the_flush_of_the_first() {
    let mut cluster = with_one_connection();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    cluster.advance(0.015);
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(2)));
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(2)));
    cluster.advance(0.005);
    assert_eq!(cluster.connections(), [] as [String; 0]);
}
