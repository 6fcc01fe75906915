//! Decapsulation on a real server with the XDP program `bpf/decap.bpf.c`: IP in IP, GRE and GUE over IPv4 and IPv6.
//!
//! [`install`] attaches the program to an interface over netlink. The program and its maps remain without a process
//! until [`remove`], or until the interface is removed. A second [`install`] replaces the program and its addresses in
//! one step. Other XDP programs are never replaced or removed. Needs no tunnel modules in the kernel. Used by `xvs
//! realserver`.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::net::IpAddr;

use serde::Serialize;
use thiserror::Error;
use xvs_xdp::Mode;
use xvs_xdp::bpf::{KernelMap, Key, Object, ObjectFile, program_info, query_xdp, set_xdp};
use xvs_xdp::device::Program;

/// The XDP program of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachedProgram {
    /// The interface has none.
    None,
    /// The program of this module, and its mode.
    Decapsulation(Mode),
    /// Another program, by the kernel's id.
    Other(u32),
}

/// An error of installing, removing or reading the program.
#[derive(Debug, Error)]
pub enum DecapError {
    /// The interface has another program.
    #[error(
        "{dev} has another XDP program ({program}); {}, or decapsulate IPv4 in IPv4 with the kernel's tunl0 \
         (`modprobe ipip`)",
        program.remedy(dev)
    )]
    Occupied {
        /// The interface.
        dev: String,
        /// The other program.
        program: Program,
    },
    /// More addresses or ports than the program's maps can contain.
    #[error("{keys} addresses or ports exceed the limit of the XDP program, {limit}")]
    TooMany {
        /// Their number.
        keys: usize,
        /// The size of the map.
        limit: u32,
    },
    /// A call of the kernel or of libbpf failed.
    #[error("{what}: {error}")]
    Refused {
        /// The failed operation.
        what: &'static str,
        /// The error of the call.
        error: io::Error,
    },
}

/// The tunnels that are decapsulated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// Destinations of outer headers: addresses of this machine.
    pub outer_dests: BTreeSet<IpAddr>,
    /// Destinations of inner packets: virtual addresses.
    pub virtuals: BTreeSet<IpAddr>,
    /// UDP ports of GUE.
    pub gue_ports: BTreeSet<u16>,
}

/// Packets that the XDP program has processed since it was installed or since `up` or `down` last changed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    /// Packets decapsulated from IP.
    pub ip: u64,
    /// Packets decapsulated from GRE.
    pub gre: u64,
    /// Packets decapsulated from GUE.
    pub gue: u64,
    /// Packets of tunnels that were left to the kernel: not to a virtual address, or not readable.
    pub left_to_kernel: u64,
    /// Packets dropped because the checksum of GRE or UDP was wrong.
    pub bad_checksum: u64,
    /// Packets dropped because they met congestion and the packet inside cannot say so (RFC 6040 section 4.2).
    pub congested: u64,
}

/// Installs the program on an interface, for exactly these tunnels: those of an earlier call are replaced.
///
/// Returns the mode: native if the driver supports it, otherwise generic.
pub fn install(dev: &str, ifindex: u32, tunnels: &Tunnels) -> Result<Mode, DecapError> {
    let attached_program = attached_program(ifindex)?;
    if let AttachedProgram::Other(program) = attached_program {
        return Err(occupied(dev, ifindex, program));
    }
    let object = load(tunnels)?;
    let program = object.program(PROGRAM).map_err(refused("finding the XDP program"))?;
    match attached_program {
        AttachedProgram::Decapsulation(mode) => {
            set_xdp(ifindex, Some(program), Some(mode)).map_err(refused("replacing the XDP program"))?
        }
        // A driver with native XDP may refuse it for an interface with this MTU or number of queues.
        _ => set_xdp(ifindex, Some(program), None)
            .or_else(|_| set_xdp(ifindex, Some(program), Some(Mode::Generic)))
            .map_err(refused("attaching the XDP program"))?,
    }
    match crate::decapsulation::attached_program(ifindex)? {
        AttachedProgram::Decapsulation(mode) => Ok(mode),
        AttachedProgram::Other(program) => Err(occupied(dev, ifindex, program)),
        AttachedProgram::None => {
            let error = io::Error::other("another process removed it at once");
            Err(DecapError::Refused { what: "attaching the XDP program", error })
        }
    }
}

/// The error about another program with this id.
fn occupied(dev: &str, ifindex: u32, id: u32) -> DecapError {
    let unknown = Program { id, mode: None, owner: None, process: None, pinned_by: None };
    let program = Program::on(ifindex).ok().flatten().unwrap_or(unknown);
    DecapError::Occupied { dev: dev.to_owned(), program }
}

/// Removes the program from an interface; a missing program is not an error.
pub fn remove(dev: &str, ifindex: u32) -> Result<(), DecapError> {
    match attached_program(ifindex)? {
        AttachedProgram::None => Ok(()),
        AttachedProgram::Other(program) => Err(occupied(dev, ifindex, program)),
        AttachedProgram::Decapsulation(mode) => {
            set_xdp(ifindex, None, Some(mode)).map_err(refused("detaching the XDP program"))
        }
    }
}

/// The XDP program of an interface.
pub fn attached_program(ifindex: u32) -> Result<AttachedProgram, DecapError> {
    let Some((id, mode)) = query(ifindex)? else { return Ok(AttachedProgram::None) };
    let info = program_info(id).map_err(refused("asking for an XDP program's name"))?;
    Ok(match mode {
        Some(mode) if info.name.as_bytes() == PROGRAM.to_bytes() => AttachedProgram::Decapsulation(mode),
        _ => AttachedProgram::Other(id),
    })
}

/// The counters of the program on an interface; zeros if the interface has no program.
pub fn counters(ifindex: u32) -> Result<Counters, DecapError> {
    let Some((id, _)) = query(ifindex)? else { return Ok(Counters::default()) };
    read_counters(id).map_err(refused("reading the XDP program's counters"))
}

/// The id of an interface's XDP program, and its mode; no mode if the program is offloaded to the device.
fn query(ifindex: u32) -> Result<Option<(u32, Option<Mode>)>, DecapError> {
    let found = query_xdp(ifindex).map_err(refused("asking for the interface's XDP program"))?;
    Ok(found.program)
}

/// Loads the program into the kernel and fills its maps; does not attach it.
fn load(tunnels: &Tunnels) -> Result<Object, DecapError> {
    let object = ObjectFile::open(IMAGE)
        .map_err(refused("reading the XDP program"))?
        .load()
        .map_err(refused("loading the XDP program (needs CAP_BPF and CAP_NET_ADMIN)"))?;
    for (name, addresses) in [(c"outer_dests", &tunnels.outer_dests), (c"virtuals", &tunnels.virtuals)] {
        fill(&object, name, addresses.iter().map(|&addr| address_key(addr)))?;
    }
    fill(&object, c"gue_ports", tunnels.gue_ports.iter().map(|port| port.to_be_bytes()))?;
    Ok(object)
}

/// An address as a key of the program's maps (`struct address` in `bpf/decap.bpf.c`).
fn address_key(addr: IpAddr) -> [u8; 20] {
    let mut key = [0; 20];
    let version: u32 = match addr {
        IpAddr::V4(addr) => {
            key[..4].copy_from_slice(&addr.octets());
            4
        }
        IpAddr::V6(addr) => {
            key[..16].copy_from_slice(&addr.octets());
            6
        }
    };
    key[16..].copy_from_slice(&version.to_ne_bytes());
    key
}

fn fill<K: Key>(
    object: &Object,
    name: &CStr,
    keys: impl ExactSizeIterator<Item = K>,
) -> Result<(), DecapError> {
    let map = object.map::<K>(name).map_err(refused("finding a map of the XDP program"))?;
    if keys.len() > map.limit() as usize {
        return Err(DecapError::TooMany { keys: keys.len(), limit: map.limit() });
    }
    for key in keys {
        map.set(&key, 1).map_err(refused("filling a map of the XDP program"))?;
    }
    Ok(())
}

/// The counters of a program, summed over the entries of its map.
fn read_counters(program: u32) -> io::Result<Counters> {
    for id in program_info(program)?.maps {
        let map = KernelMap::open(id)?;
        if map.name.as_bytes() != COUNTERS.to_bytes() {
            continue;
        }
        let mut sums = CounterLine::default();
        for cpu in 0..map.limit {
            let line: CounterLine = map.words(cpu)?;
            sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += value);
        }
        let [ip, gre, gue, left_to_kernel, bad_checksum, congested, ..] = sums;
        return Ok(Counters { ip, gre, gue, left_to_kernel, bad_checksum, congested });
    }
    Err(io::Error::other("the program has no counters"))
}

fn refused(what: &'static str) -> impl Fn(io::Error) -> DecapError {
    move |error| DecapError::Refused { what, error }
}

const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decap.bpf.o"));

/// The program's name, which identifies it on an interface.
const PROGRAM: &CStr = c"xvs_decap";

/// The map of its counters, and a value of that map, in the order of [`Counters`].
const COUNTERS: &CStr = c"decap_counters";
type CounterLine = [u64; 8];

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use crate::decapsulation::*;
    use xvs_xdp::bpf::test_run;

    const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2);
    const GUE_PORT: u16 = 6080;
    const PASS: u32 = 2;
    const DROP: u32 = 1;

    fn program() -> Object {
        let tunnels = Tunnels {
            outer_dests: [SERVER.into(), SERVER6.into()].into(),
            virtuals: [VIP.into(), VIP6.into()].into(),
            gue_ports: [GUE_PORT].into(),
        };
        load(&tunnels).expect("this test needs root: it loads a BPF program")
    }

    /// The program's verdict on a frame, and the modified frame.
    fn run(frame: &[u8]) -> (u32, Vec<u8>) {
        run_in(&program(), frame)
    }

    fn run_in(object: &Object, frame: &[u8]) -> (u32, Vec<u8>) {
        test_run(object.program(PROGRAM).unwrap(), frame).unwrap()
    }

    fn sum(bytes: &[u8]) -> u16 {
        let words =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut total: u32 = words.sum();
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    /// An IPv4 packet with a valid checksum and `options` bytes of no-operation options.
    fn ipv4(tos: u8, protocol: u8, dest: Ipv4Addr, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![1; 20 + options];
        let total = (header.len() + payload.len()) as u16;
        header[0] = 0x45 + (options / 4) as u8;
        header[1] = tos;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[4..12].copy_from_slice(&[0, 7, 0, 0, 64, protocol, 0, 0]);
        header[12..16].copy_from_slice(&[10, 0, 0, 1]);
        header[16..20].copy_from_slice(&dest.octets());
        let check = !sum(&header);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        [&header, payload].concat()
    }

    fn ipv6(class: u8, next: u8, dest: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x60 | class >> 4, class << 4, 0, 0, 0, 0, next, 64];
        header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        header.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 1).octets());
        header.extend(dest.octets());
        [&header, payload].concat()
    }

    fn frame(tags: &[u8], packet: &[u8]) -> Vec<u8> {
        let ethertype: &[u8] = if packet[0] >> 4 == 6 { &[0x86, 0xdd] } else { &[8, 0] };
        [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], tags, ethertype, packet].concat()
    }

    /// An inner packet of odd length with an arbitrary payload.
    fn request(tos: u8) -> Vec<u8> {
        ipv4(tos, 17, VIP, 0, b"0123456789a")
    }

    fn request6(class: u8) -> Vec<u8> {
        ipv6(class, 17, VIP6, b"0123456789a")
    }

    /// Whether the header of a tunnel carries a checksum.
    #[derive(Clone, Copy)]
    enum Summed {
        No,
        Yes,
    }

    fn gre(summed: Summed, inner: &[u8]) -> Vec<u8> {
        let protocol: [u8; 2] = if inner[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
        match summed {
            Summed::No => [&[0, 0], &protocol[..], inner].concat(),
            Summed::Yes => {
                let mut packet = [&[0x80, 0], &protocol[..], &[0; 4], inner].concat();
                let check = !sum(&packet);
                packet[4..6].copy_from_slice(&check.to_be_bytes());
                packet
            }
        }
    }

    /// `inner` after UDP and GUE headers; `addrs` are the addresses in the outer header.
    fn gue(summed: Summed, addrs: &[u8], inner: &[u8]) -> Vec<u8> {
        let protocol = if inner[0] >> 4 == 6 { 41 } else { 4 };
        let mut packet = [&[0x9c, 0x40, 0x17, 0xc0, 0, 0, 0, 0, 0, protocol, 0, 0], inner].concat();
        let length = (packet.len() as u16).to_be_bytes();
        packet[4..6].copy_from_slice(&length);
        if let Summed::Yes = summed {
            let check = !sum(&[addrs, &[0, 17], &length, &packet].concat());
            packet[6..8].copy_from_slice(&check.to_be_bytes());
        }
        packet
    }

    /// This packet in each kind of tunnel over both families.
    fn tunnels(tos: u8, inner: &[u8]) -> Vec<Vec<u8>> {
        let direct = if inner[0] >> 4 == 6 { 41 } else { 4 };
        let addrs = [10, 0, 0, 1, 10, 0, 0, 2];
        let addrs6 = &ipv6(0, 0, SERVER6, &[])[8..];
        let mut all = vec![ipv4(tos, direct, SERVER, 0, inner), ipv6(tos, direct, SERVER6, inner)];
        for summed in [Summed::No, Summed::Yes] {
            all.push(ipv4(tos, 47, SERVER, 0, &gre(summed, inner)));
            all.push(ipv6(tos, 47, SERVER6, &gre(summed, inner)));
            all.push(ipv4(tos, 17, SERVER, 0, &gue(summed, &addrs, inner)));
            all.push(ipv6(tos, 17, SERVER6, &gue(summed, addrs6, inner)));
        }
        all
    }

    #[test]
    fn every_tunnel_of_both_families_is_decapsulated_and_the_ethernet_type_is_that_of_the_inner_packet() {
        let object = program();
        let long = ipv4(0, 17, VIP, 0, &[0xc3; 1401]);
        let longer = ipv6(0, 17, VIP6, &[0x3c; 1024]);
        for inner in [request(0), request6(0), long, longer] {
            for (kind, outer) in tunnels(0, &inner).into_iter().enumerate() {
                for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 6, 0x81, 0, 0, 5]] {
                    let want = frame(tags, &inner);
                    assert_eq!(run_in(&object, &frame(tags, &outer)), (PASS, want), "{kind} {tags:?}");
                }
            }
        }
    }

    #[test]
    fn outer_headers_with_options_are_removed() {
        let request = request(0);
        for options in [0, 4, 40] {
            let tunnelled = frame(&[], &ipv4(0, 4, SERVER, options, &request));
            assert_eq!(run(&tunnelled), (PASS, frame(&[], &request)), "{options}");
        }
    }

    #[test]
    fn all_but_valid_packets_of_a_configured_tunnel_reach_the_kernel_unchanged() {
        let object = program();
        let good = ipv4(0, 4, SERVER, 0, &request(0));
        let edit = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            // With a valid outer checksum, only the edit can be the reason.
            packet[10..12].fill(0);
            let check = !sum(&packet[..20]);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
            packet
        };
        let mut wrong_checksum = good.clone();
        wrong_checksum[11] ^= 1;
        let edit_inside = |mut packet: Vec<u8>, at: usize, value: u8| {
            packet[at] = value;
            packet
        };
        let gre4 = ipv4(0, 47, SERVER, 0, &gre(Summed::No, &request(0)));
        let gue4 = ipv4(0, 17, SERVER, 0, &gue(Summed::No, &[], &request(0)));
        let good6 = ipv6(0, 41, SERVER6, &request6(0));
        let mut cases = vec![
            ("outer destination", edit(19, 9)),
            ("inner destination", edit(39, 9)),
            ("another protocol", edit(9, 50)),
            ("first fragment", edit(6, 0x20)),
            ("later fragment", edit(7, 1)),
            ("total length beyond the frame", edit(3, 250)),
            ("total length without an inner header", edit(3, 30)),
            ("header length below five words", edit(0, 0x44)),
            ("header length beyond the packet", edit(0, 0x4f)),
            ("inner version", edit(20, 0x65)),
            ("inner total length beyond the outer", edit(23, 200)),
            ("outer checksum", wrong_checksum),
            ("cut inside the inner header", good[..30].to_vec()),
            ("IPv6 announced, IPv4 inside", edit(9, 41)),
            ("GRE key", edit_inside(gre4.clone(), 20, 0x20)),
            ("GRE version 1", edit_inside(gre4.clone(), 21, 1)),
            ("GRE around ARP", edit_inside(gre4.clone(), 23, 6)),
            ("GUE to another port", edit_inside(gue4.clone(), 23, 0xc1)),
            ("GUE control message", edit_inside(gue4.clone(), 28, 0x20)),
            ("GUE version 1", edit_inside(gue4.clone(), 28, 0x40)),
            ("GUE optional fields", edit_inside(gue4.clone(), 28, 1)),
            ("GUE flags", edit_inside(gue4.clone(), 30, 0x80)),
            ("GUE around UDP", edit_inside(gue4.clone(), 29, 17)),
            ("UDP length", edit_inside(gue4.clone(), 25, 20)),
            ("IPv6 outer destination", edit_inside(good6.clone(), 39, 9)),
            ("IPv6 inner destination", edit_inside(good6.clone(), 79, 9)),
            ("IPv6 payload length beyond the frame", edit_inside(good6.clone(), 5, 250)),
            ("IPv6 inner length beyond the outer", edit_inside(good6.clone(), 45, 200)),
            ("IPv6 fragment", ipv6(0, 44, SERVER6, &[&[41, 0, 0, 0, 0, 0, 0, 1], &request6(0)[..]].concat())),
            ("no tunnel at all", request(0)),
            ("no tunnel at all, IPv6", request6(0)),
        ];
        // Frames that end at any byte of a header.
        for whole in [&good, &gre4, &gue4, &good6] {
            cases.extend((1..44.min(whole.len())).map(|len| ("cut", whole[..len].to_vec())));
        }
        for (what, packet) in cases {
            let frame = frame(&[], &packet);
            assert_eq!(run_in(&object, &frame), (PASS, frame), "{what}");
        }
        let mut arp = frame(&[], &good);
        arp[13] = 6;
        assert_eq!(run_in(&object, &arp), (PASS, arp));
    }

    #[test]
    fn a_packet_with_a_wrong_checksum_of_the_tunnel_is_dropped_wherever_the_wrong_bit_is() {
        let object = program();
        let inner = ipv6(0, 17, VIP6, &[0xc3; 701]);
        for outer in tunnels(0, &inner).into_iter().skip(6) {
            // After the headers, near the last border of the chunks that are summed, and at the end.
            for at in [outer.len() - 300, outer.len() - 2, outer.len() - 1] {
                let mut broken = frame(&[], &outer);
                broken[14 + at] ^= 0x10;
                assert_eq!(run_in(&object, &broken).0, DROP, "byte {at} of {}", outer.len());
            }
        }
    }

    #[test]
    fn a_congestion_mark_of_the_outer_header_is_copied_to_the_inner_packet_or_the_packet_is_dropped() {
        const CE: u8 = 3;
        for capable in [1, 2, CE] {
            for outer in tunnels(0xb8 | CE, &request(0x28 | capable)) {
                assert_eq!(run(&frame(&[], &outer)), (PASS, frame(&[], &request(0x28 | CE))), "{capable}");
            }
            for outer in tunnels(0xb8 | CE, &request6(0x28 | capable)) {
                assert_eq!(run(&frame(&[], &outer)), (PASS, frame(&[], &request6(0x28 | CE))), "{capable}");
            }
        }
        for inner in [request(0x28), request6(0x28)] {
            for outer in tunnels(0xb8 | CE, &inner) {
                assert_eq!(run(&frame(&[], &outer)).0, DROP);
            }
        }
    }
}
