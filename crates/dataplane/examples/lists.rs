//! The figures of docs/performance.md, "Access lists": `cargo run --release -p xvs-dataplane --example lists`.
//!
//! Runs the steering program on a frame to a service (BPF_PROG_TEST_RUN, a million runs each time), without lists and
//! with a deny list of a million networks, in turns. Prints the least of each, because other programs only add to it.
//! Needs root.

// A benchmark may unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use xvs_dataplane::snapshot::lists::{List, Lists, Networks, Scope};
use xvs_dataplane::steering::{Steering, SteeringRules};
use xvs_proto::{Endpoint, Prefix, Protocol};

const RUNS: u32 = 1_000_000;
const TURNS: usize = 9;
const NETWORKS: u32 = 1_000_000;

/// A SYN to the service from this address. No field that the program does not read is set.
fn frame(from: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    (frame[17], frame[22], frame[23]) = (40, 64, 6);
    frame[26..30].copy_from_slice(&from.octets());
    frame[30..34].copy_from_slice(&[192, 0, 2, 1]);
    frame[34..38].copy_from_slice(&[4, 0, 0, 80]);
    frame
}

/// Addresses that are spread over most /24s of half the address space, as those of a large list are.
fn listed(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(number.wrapping_mul(0x9e37_79b1) | 0x8000_0000)
}

fn main() {
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    let service = (Protocol::TCP, Endpoint::new([192, 0, 2, 1], 80));
    steering.update(&SteeringRules { services: [service].into(), ..SteeringRules::default() }).unwrap();
    let began = Instant::now();
    let networks: Networks = (0..NETWORKS).map(|number| Prefix::host(IpAddr::V4(listed(number)))).collect();
    let read = began.elapsed();
    let count = networks.len();
    let began = Instant::now();
    let deny = List { parts: [None, Some(Arc::new(networks))], ..List::default() };
    let lists = Arc::new(Lists::new(Scope { deny, ..Scope::default() }, []));
    let bits = began.elapsed();
    let frames = [frame(Ipv4Addr::new(10, 0, 0, 1)), frame(Ipv4Addr::new(10, 0, 0, 1)), frame(listed(7))];
    let mut least = [u32::MAX; 3];
    let mut installed = Vec::new();
    for _ in 0..TURNS {
        steering.set_lists(None).unwrap();
        least[0] = least[0].min(steering.bench(&frames[0], RUNS).unwrap());
        let began = Instant::now();
        steering.set_lists(Some((lists.clone(), Vec::new()))).unwrap();
        installed.push(began.elapsed());
        for case in [1, 2] {
            least[case] = least[case].min(steering.bench(&frames[case], RUNS).unwrap());
        }
    }
    let [without, other, denied] = least;
    println!(
        "{count} networks: set {read:?}, bits {bits:?}, installed {:?}",
        installed.iter().min().unwrap()
    );
    println!("a packet without lists: {without} ns");
    println!("of a client in no list: {other} ns, {:.2} times", f64::from(other) / f64::from(without));
    println!("of a denied client: {denied} ns");
}
