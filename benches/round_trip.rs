//! Requests that are answered one at a time: the load of `scripts/bench --latency`.
//!
//! ```text
//! round_trip 198.51.100.100:9 1000 5
//! ```
//!
//! Arguments: the destination, for which `far_end` of `wire.bpf.c` answers; the number of requests; the pause before
//! each, in milliseconds. Prints the percentiles from 1 to 99 of the nanoseconds from a request to its answer, without
//! the first tenth of the requests. All are of one flow. A lost request or answer is an error.

use std::error::Error;
use std::net::{SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: round_trip ADDRESS:PORT REQUESTS MILLISECONDS";
/// As long as that of `udp_source`; the fifth byte asks for an answer.
const PAYLOAD: [u8; 18] = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// For a packet that waits for a neighbour, and for a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dest, requests, pause] = &arguments[..] else { return Err(USAGE.into()) };
    let (requests, pause): (usize, u64) = (requests.parse()?, pause.parse()?);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(dest.parse::<SocketAddrV4>()?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut times = Vec::with_capacity(requests);
    for number in 0..requests {
        thread::sleep(Duration::from_millis(pause));
        let start = Instant::now();
        socket.send(&PAYLOAD)?;
        let length =
            socket.recv(&mut [0; PAYLOAD.len()]).map_err(|error| format!("answer {number}: {error}"))?;
        times.push(start.elapsed().as_nanos());
        if length != PAYLOAD.len() {
            return Err(format!("answer {number} has {length} bytes").into());
        }
    }
    let steady = &mut times[requests / 10..];
    steady.sort_unstable();
    let percentile = |percent| steady.get(steady.len() * percent / 100).map(u128::to_string);
    let percentiles: Option<Vec<_>> = (1..100).map(percentile).collect();
    println!("{}", percentiles.ok_or("no request")?.join(","));
    Ok(())
}
