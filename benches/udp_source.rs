//! Source of small UDP packets, as fast as one thread can send: the load of `scripts/bench`.
//!
//! ```text
//! udp_source 198.51.100.100:9 64 1000000 5      (destination, flows, packets, seconds)
//! ```
//!
//! Ends after this number of packets or seconds, whichever is first, and prints the number of sent packets. Each packet
//! is a frame of 64 bytes on the wire; the flows take turns, each from a port of its own. A packet that the kernel
//! refuses is not counted. Not here: replies.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: udp_source ADDRESS:PORT FLOWS PACKETS SECONDS";
/// 64 bytes less Ethernet header, frame check sequence, IPv4 and UDP header.
const PAYLOAD_BYTES: usize = 64 - 18 - 20 - 8;
/// Packets between two readings of the clock.
const BATCH: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dest, flows, packets, seconds] = &arguments[..] else { return Err(USAGE.into()) };
    let (dest, packets) = (dest.parse::<SocketAddr>()?, packets.parse::<usize>()?);
    let sockets: Vec<_> = (0..flows.parse()?).map(|_| source(dest)).collect::<Result<_, _>>()?;
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    let mut sent = 0;
    for (offered, socket) in sockets.iter().cycle().enumerate() {
        if offered == packets || (offered % BATCH == 0 && Instant::now() >= end) {
            break;
        }
        sent += u64::from(socket.send(&[0; PAYLOAD_BYTES]).is_ok());
    }
    println!("{sent}");
    Ok(())
}

fn source(dest: SocketAddr) -> Result<UdpSocket, std::io::Error> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(dest)?;
    Ok(socket)
}
