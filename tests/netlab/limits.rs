//! Limits of SYNs on the wire: a flood of SYNs above the rate, which the XDP program drops.
//!
//! The test has a cluster of its own. Needs root. Not here: what a limit does (`lab/client_limit.rs`), the program
//! alone (`crates/dataplane/tests/kernel/steering_syn_limits.rs`).

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use xvs::clients::{HalfUpload, fetch};
use xvs::cluster::{REAL_SERVERS, VIP};
use xvs::director::Protocol;
use xvs::frames::{SYN, fragments};
use xvs::servers::Sink;
use xvs::{Cluster, Datagram, Director, Host, Method, Segment, Transport, Workers, traffic, wait};

const UPLOAD: u16 = 9000;
const HTTP: u16 = 80;
/// The SYNs of the flood, from as many forged addresses, and those that the limit lets pass at once.
const FLOOD: u32 = 20_000;
const BURST: u64 = 50;

/// Sends the flood to the service of uploads.
fn flood(cluster: &Cluster) {
    cluster.run(Host::Client, || {
        let raw = raw();
        for number in 0..FLOOD {
            let from = Ipv4Addr::from(0x0a80_0000 + number);
            let syn = Segment { syn: true, sequence: number, ..Segment::default() };
            let frame = syn.frame((from.into(), 40_000), (VIP.into(), UPLOAD), Default::default());
            // A full queue loses some, as it does anywhere.
            let _ = sendto(&raw, &frame[14..], SendFlags::empty(), &SocketAddrV4::new(VIP, 0));
        }
    });
}

/// Sends `count` SYNs with data, in two fragments each.
fn in_fragments(cluster: &Cluster, count: u16) {
    cluster.run(Host::Client, || {
        let (raw, to) = (raw(), SocketAddrV4::new(VIP, UPLOAD));
        for port in 1000..1000 + count {
            let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port);
            let syn = Datagram { id: port, ..Datagram::new(Transport::Tcp(SYN), from.into(), to.into()) };
            let whole = syn.carrying(20).frame(Default::default(), Default::default());
            for fragment in fragments(&whole, 24) {
                sendto(&raw, &fragment[14..], SendFlags::empty(), &SocketAddrV4::new(VIP, 0)).expect("room");
            }
        }
    });
}

fn raw() -> OwnedFd {
    socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).expect("a raw socket")
}

fn row(director: &Director<'_>) -> (u64, u64) {
    let json = |words: &str| -> serde_json::Value {
        serde_json::from_str(&director.xvs(&format!("{words} --json"))).expect("JSON")
    };
    let by_limit = json("limit list")["limits"][0]["syns_dropped"].as_u64().expect("a count");
    (by_limit, json("counters")["drop_syn_rate"].as_u64().unwrap_or(0))
}

#[test]
fn a_flood_of_syns_ends_in_the_program_while_connections_and_other_services_go_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let mut director = Director::start_with(&cluster, Workers::Two, &["--hold", "10s"]);
    for port in [HTTP, UPLOAD] {
        director.add_service(Protocol::Tcp, port, Method::Nat);
    }
    let uploads: Vec<_> = (0..5).map(|_| HalfUpload::begin(&cluster, UPLOAD)).collect();
    director.xvs(&format!("limit set -t {VIP}:{UPLOAD} --syn-rate 1 --syn-burst {BURST}"));
    let began = std::time::Instant::now();
    flood(&cluster);
    let page = fetch(&cluster, &format!("http://{VIP}:{HTTP}/blob"));
    assert!(page.is_ok_and(|page| page == cluster.blob()), "the other service");
    uploads.into_iter().for_each(HalfUpload::finish);
    let (by_limit, by_workers) = row(&director);
    assert!(by_limit > u64::from(FLOOD) / 2 && by_workers == 0, "{by_limit} {by_workers}");
    // Five connections came before; each second that passed let one more in.
    let most = 5 + BURST + began.elapsed().as_secs() + 1;
    let to = format!("{VIP}:{UPLOAD}");
    let made = director.adm("-Lnc").lines().filter(|line| line.contains(&to)).count() as u64;
    assert!((5 + BURST..=most).contains(&made), "neither the program nor the workers: {made}");

    // The limit is there after a kill.
    director.kill();
    drop(director);
    let director = Director::start_with(&cluster, Workers::Two, &["--hold", "10s"]);
    assert_eq!(row(&director).0, 0);
    flood(&cluster);
    let (by_limit, by_workers) = row(&director);
    assert!(by_limit > u64::from(FLOOD) / 2 && by_workers == 0, "{by_limit} {by_workers}");
    let began = std::time::Instant::now();
    in_fragments(&cluster, 40);
    // Each second that passed let one in.
    let is_dropped = || (row(&director).1 + began.elapsed().as_secs() + 1 >= 40).then_some(());
    wait::until("workers drop SYNs in fragments by the same limit", is_dropped);
}
