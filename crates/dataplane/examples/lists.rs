//! The figures of docs/security.md, "Access lists" and "SYNs of all clients": `cargo run --release -p xvs-dataplane
//! --example lists`.
//!
//! Runs the steering program on a frame to a service (BPF_PROG_TEST_RUN, a million runs each time), without lists and
//! with a deny list of a million networks, without and with a limit of SYNs, in turns. Prints the least time of each
//! case, because other programs only add to it. Needs root.

// A benchmark may unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use xvs_dataplane::snapshot::lists::{List, Lists, Networks, Scope};
use xvs_dataplane::snapshot::syn_limits::SynLimit;
use xvs_dataplane::steering::{Steering, SteeringRules};
use xvs_proto::{Endpoint, Prefix, Protocol};
use xvs_sched::{ServiceKey, SynRate};

const RUNS: u32 = 1_000_000;
const TURNS: usize = 9;
const NETWORKS: u32 = 1_000_000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A SYN to the port from this address. No field that the program does not read is set.
fn frame(from: Ipv4Addr, port: u8) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    (frame[17], frame[22], frame[23]) = (40, 64, 6);
    frame[26..30].copy_from_slice(&from.octets());
    frame[30..34].copy_from_slice(&[192, 0, 2, 1]);
    frame[34..38].copy_from_slice(&[4, 0, 0, port]);
    frame[47] = SYN;
    frame
}

/// Addresses that are spread over most /24s of half the address space, as those of a large list are.
fn listed(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(number.wrapping_mul(0x9e37_79b1) | 0x8000_0000)
}

fn main() {
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    let services = [80, 81].map(|port| (Protocol::TCP, Endpoint::new([192, 0, 2, 1], port)));
    steering.update(&SteeringRules { services: services.into(), ..SteeringRules::default() }).unwrap();
    let began = Instant::now();
    let networks: Networks = (0..NETWORKS).map(|number| Prefix::host(IpAddr::V4(listed(number)))).collect();
    let read = began.elapsed();
    let count = networks.len();
    let began = Instant::now();
    let deny = List { parts: [None, Some(Arc::new(networks))], ..List::default() };
    let lists = Arc::new(Lists::new(Scope { deny, ..Scope::default() }, []));
    let bits = began.elapsed();
    let (client, denied) = (frame(Ipv4Addr::new(10, 0, 0, 1), 80), frame(listed(7), 80));
    let to_limited = frame(Ipv4Addr::new(10, 0, 0, 1), 81);
    let mut established = to_limited.clone();
    established[47] = ACK;
    let mut least = [u32::MAX; 7];
    let mut installed = Vec::new();
    for _ in 0..TURNS {
        let mut bench = |steering: &Steering, case: usize, frame: &[u8]| {
            least[case] = least[case].min(steering.bench(frame, RUNS).unwrap());
        };
        steering.set_lists(None).unwrap();
        bench(&steering, 0, &client);
        let began = Instant::now();
        steering.set_lists(Some((lists.clone(), Vec::new()))).unwrap();
        installed.push(began.elapsed());
        bench(&steering, 1, &client);
        bench(&steering, 2, &denied);
        steering.set_lists(None).unwrap();
        // As many SYNs as runs may come at once; then almost none.
        for (rate, cases) in
            [(RUNS, &[(3, &client), (4, &established), (5, &to_limited)][..]), (1, &[(6, &to_limited)])]
        {
            let limit = SynLimit::new(SynRate { rate, burst: rate }, Arc::default());
            let limited = ServiceKey::tcp(services[1].1);
            steering.set_syn_limits(&[(limited, Arc::new(limit))].into_iter().collect()).unwrap();
            cases.iter().for_each(|(case, frame)| bench(&steering, *case, frame));
        }
        steering.set_syn_limits(&Default::default()).unwrap();
    }
    let [without, other, denied, unlimited, established, passed, dropped] = least;
    println!(
        "{count} networks: set {read:?}, bits {bits:?}, installed {:?}",
        installed.iter().min().unwrap()
    );
    println!("a SYN without lists and limits: {without} ns");
    println!("of a client in no list: {other} ns, {:.2} times", f64::from(other) / f64::from(without));
    println!("of a denied client: {denied} ns");
    println!("a SYN to a service without a limit, while another one has one: {unlimited} ns");
    println!("an ACK to a service with a limit: {established} ns");
    println!("a SYN within the limit: {passed} ns; above it: {dropped} ns");
}
