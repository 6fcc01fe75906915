//! Forged SYNs of random sources: the flood of `scripts/bench --disturbances`.
//!
//! ```text
//! syn_source forge.bpf.o wan 02:00:00:00:00:d0 80 300000 4
//! ```
//!
//! Arguments: the object file of `forge.bpf.c`; the interface; the link address behind it; the port of the VIP; packets
//! a second; seconds. Prints the number of packets. Needs root.

// That of the suite `attack`, which has more kinds of packets.
#[allow(dead_code)]
#[path = "../tests/soak/attack/forge.rs"]
mod forge;

use std::error::Error;
use std::fs;
use std::time::Duration;

use xvs_proto::MacAddr;

use forge::{Forge, Kind};

const USAGE: &str = "usage: syn_source OBJECT INTERFACE MAC PORT RATE SECONDS";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [object, interface, mac, port, rate, seconds] = &arguments[..] else { return Err(USAGE.into()) };
    let to = (interface.as_str(), mac.parse::<MacAddr>()?.0);
    let forge = Forge::new(&fs::read(object)?, Kind::SYN, port.parse()?, to, Some(rate.parse()?))?;
    println!("{}", forge.send(Duration::from_secs(seconds.parse()?)));
    Ok(())
}
