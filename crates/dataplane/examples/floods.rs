//! The table of docs/performance.md, "Floods": `cargo run --release -p xvs-dataplane --example floods`.
//!
//! Fails if clients are locked out that should not be.

// Shared with tests that need more of it.
#[allow(dead_code)]
#[path = "../tests/workers/mod.rs"]
mod workers;

use workers::ACK;
use workers::flood::flooded;

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
}
