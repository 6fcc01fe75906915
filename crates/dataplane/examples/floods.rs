//! The table of docs/costs.md, "Floods", and how many forged cookies pass:
//! `cargo run --release -p xvs-dataplane --example floods`.
//!
//! Fails if clients are locked out that should not be, or if more cookies pass than their bits promise.

// Shared with tests that need more of it.
#[allow(dead_code)]
#[path = "../tests/support/workers/mod.rs"]
mod workers;

use std::net::Ipv4Addr;

use workers::flood::flooded;
use workers::{ACK, Flow, VIP, Workers, random};
use xvs_proto::{Protocol, checksum};

fn main() {
    println!("packets from each forged address: clients that connected, of these in the table at the end");
    for packets in [1, 2, 3, 4, 8, 10] {
        let (connected, lasting) = flooded(1, 1 << 13, 120_000, &[ACK; 9][..packets - 1]);
        println!("{packets}: {connected}, {lasting}");
        assert!(connected >= 900 && (lasting >= 900 || packets > 3), "{packets}: {connected}, {lasting}");
    }
    let (_, lasting) = flooded(1, 1 << 16, 1_000_000, &[]);
    println!("1, a million SYNs into 65,536 entries: {lasting}");
    assert!(lasting >= 900, "{lasting}");
    let accepted = forged_cookies();
    println!("forged ACKs to a SYN proxy that were taken for right ones, of {FORGED}: {accepted}");
    assert!((1..=30).contains(&accepted), "{accepted}: one in eight million is expected");
}

/// Sends ACKs from random clients with random numbers to a service with a SYN proxy. Returns how many pass.
fn forged_cookies() -> u64 {
    let mut workers = Workers::new(1 << 13, 1);
    workers.set_syn_proxy();
    let mut random = random(1);
    for burst in 0..FORGED / 64 {
        // Two minutes of a flood, so cookies of several slots.
        workers.set_clock_without_timers(burst * 120_000 / (FORGED / 64));
        let forged = (0..64).map(|_| {
            let (client, numbers) = (random(), random());
            let mut frame = Flow::nat((client >> 32) as u8 & 63, client as u32).request(ACK);
            frame[38..46].copy_from_slice(&numbers.to_be_bytes());
            let client = Ipv4Addr::from(*frame[26..30].first_chunk().expect("an address"));
            let sum = checksum::transport(client.into(), VIP.into(), Protocol::TCP.0, &frame[34..]);
            frame[50..52].copy_from_slice(&sum.to_be_bytes());
            frame
        });
        workers.worker(0).burst(&forged.collect::<Vec<_>>());
    }
    workers.counter("syn_cookies_accepted")
}

/// Forged ACKs that are counted.
const FORGED: u64 = 100_000_000;
