//! Source of small UDP packets: the load of `scripts/bench`.
//!
//! ```text
//! udp_source wire.bpf.o wan 02:00:00:00:00:d0 198.51.100.10:1024 198.51.100.100:9 64 drop 1000000 360000
//! ```
//!
//! Arguments: the object file of `wire.bpf.c`; the interface; the link address behind it; the source of the first flow;
//! the destination; the number of flows, 50,000 for each source address (`64:1`: one for each); what the far end does
//! with the packets, `drop` or `answer`; the number of packets; packets a second (default: without pauses). Prints the
//! nanoseconds that sending took. Packets for which the interface has no room are lost. Each is a frame of 64 bytes on
//! the wire; the flows take turns. The interface must be able to send frames of XDP, as a veth can while its other end
//! has an XDP program or GRO. Needs root. Not here: what becomes of answers.

use std::error::Error;
use std::fs;
use std::net::SocketAddrV4;
use std::time::Instant;

use etherparse::PacketBuilder;
use xvs_proto::MacAddr;
use xvs_xdp::bpf::{ObjectFile, run_live};
use xvs_xdp::device::Device;

const USAGE: &str =
    "usage: udp_source OBJECT INTERFACE MAC SOURCE DESTINATION FLOWS[:OF_ADDRESS] drop|answer PACKETS [RATE]";
/// 64 bytes less Ethernet header, frame check sequence, IPv4 and UDP header.
const PAYLOAD_BYTES: usize = 64 - 18 - 20 - 8;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [object, interface, mac, source, dest, flows, far_end, packets, rate @ ..] = &arguments[..] else {
        return Err(USAGE.into());
    };
    let is_answered = match far_end.as_str() {
        "drop" => false,
        "answer" => true,
        _ => return Err(USAGE.into()),
    };
    let rate: Option<u64> = rate.first().map(|rate| rate.parse()).transpose()?;
    let interval = rate.map_or(0, |rate| (1_000_000_000 << 10) / rate);
    let source = source.parse::<SocketAddrV4>()?;
    let frame = frame(mac.parse()?, source, dest.parse()?, is_answered)?;

    let mut file = ObjectFile::open(&fs::read(object)?)?;
    [c"far_end", c"sink"].into_iter().try_for_each(|program| file.leave_out(program))?;
    let (flows, of_address) = flows.split_once(':').unwrap_or((flows, "50000"));
    let words =
        [Device::look(interface)?.ifindex, flows.parse()?, source.port().into(), of_address.parse::<u32>()?];
    let words = words.into_iter().flat_map(u32::to_ne_bytes);
    let constants = interval.to_ne_bytes().into_iter().chain(words).chain(frame.iter().copied());
    file.set_constants(&constants.collect::<Vec<u8>>())?;
    let object = file.load()?;

    let start = Instant::now();
    // While this thread waits until a packet is due, the far end does not run. It has room for 256 packets.
    let batch = if rate.is_some() { 64 } else { 256 };
    run_live(object.program(c"source")?, &frame, packets.parse()?, batch)?;
    println!("{}", start.elapsed().as_nanos());
    Ok(())
}

/// The first flow's packet. Its checksums are right for any flow: the first two bytes of the payload are the complement
/// of the port. The next two and the identification are zero here, else the complement of what is added to the address.
fn frame(
    mac: MacAddr,
    source: SocketAddrV4,
    dest: SocketAddrV4,
    is_answered: bool,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut payload = [0; PAYLOAD_BYTES];
    payload[..2].copy_from_slice(&(!source.port()).to_be_bytes());
    payload[4] = is_answered.into();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], mac.0)
        .ipv4(source.ip().octets(), dest.ip().octets(), 64)
        .udp(source.port(), dest.port());
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload)?;
    Ok(frame)
}
