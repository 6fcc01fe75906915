//! The least that forwarding by a table of connections can cost: read addresses and ports, hash, find, compare, write
//! link addresses. `benches/pipeline.rs` compares the pipeline with it, which also checks headers, follows states and
//! deadlines, and counts.
//!
//! A packet reads two cache lines, as in the table of the data plane: one with eight tags and entry numbers, then the
//! entry. IPv4 and UDP or TCP without options only.

use xvs_dataplane::port::Port;
use xvs_proto::{MacAddr, ethernet};
use xvs_xdp::BURST;

use super::{LAN, Loop, Variant};

const ADDRESSES: std::ops::Range<usize> = 26..34;
const PORTS: std::ops::Range<usize> = 34..38;
const PROTOCOL: usize = 23;

/// Addresses and ports of a packet, and its protocol.
type Key = [u64; 2];

/// Eight slots: a tag in the upper half, the number of an entry plus 1 in the lower.
#[repr(align(64))]
#[derive(Clone)]
struct Line([u64; 8]);

#[repr(align(64))]
struct Entry {
    key: Key,
    next_hop: usize,
}

/// A table with these connections, and the link addresses of eight real servers.
pub(crate) struct Floor {
    lines: Vec<Line>,
    entries: Vec<Entry>,
    next_hops: [MacAddr; 8],
}

impl Floor {
    /// A table with the first `flows` flows of a variant.
    pub(crate) fn new(variant: Variant, flows: u32) -> Self {
        let lines = vec![Line([0; 8]); (flows as usize / 4).next_power_of_two()];
        let next_hops = [0, 1, 2, 3, 4, 5, 6, 7].map(|number| MacAddr([2, 0, 0, 0, 2, number]));
        let mut floor = Self { lines, entries: Vec::with_capacity(flows as usize), next_hops };
        for flow in 0..flows {
            let key = variant.flow_key(flow);
            let mut bytes = [0; PORTS.end];
            let octets = |addr| if let std::net::IpAddr::V4(v4) = addr { v4.octets() } else { [0; 4] };
            bytes[26..30].copy_from_slice(&octets(key.source.addr));
            bytes[30..34].copy_from_slice(&octets(key.dest.addr));
            bytes[34..36].copy_from_slice(&key.source.port.to_be_bytes());
            bytes[36..38].copy_from_slice(&key.dest.port.to_be_bytes());
            bytes[PROTOCOL] = key.protocol.0;
            let key = read(&bytes);
            let (mut line, tag) = floor.place(key);
            while !floor.lines[line].0.contains(&0) {
                line = (line + 1) & (floor.lines.len() - 1);
            }
            let free = floor.lines[line].0.iter_mut().find(|slot| **slot == 0).expect("one is free");
            *free = tag | u64::from(flow + 1);
            floor.entries.push(Entry { key, next_hop: flow as usize % 8 });
        }
        floor
    }

    /// Forwards what the port offers.
    pub(crate) fn forward(&self, port: &mut Loop) {
        let mut burst = Vec::with_capacity(BURST);
        let (mut keys, mut places, mut numbers) = ([[0; 2]; BURST], [(0, 0); BURST], [0; BURST]);
        while port.is_open() {
            port.receive(&mut burst);
            // The values that are read ahead are not used: reading them fetches their lines.
            let mut ahead = 0;
            for ((received, key), place) in burst.iter().zip(&mut keys).zip(&mut places) {
                *key = read(received.frame.bytes());
                *place = self.place(*key);
                ahead ^= self.lines[place.0].0[0];
            }
            for (place, number) in places[..burst.len()].iter().zip(&mut numbers) {
                *number = self.find(*place);
                ahead ^= self.entries[*number].key[0];
            }
            std::hint::black_box(ahead);
            for ((mut received, key), number) in burst.drain(..).zip(&keys).zip(&numbers) {
                let entry = &self.entries[*number];
                assert!(entry.key == *key, "every flow has its connection");
                let next = self.next_hops[entry.next_hop];
                ethernet::set_addresses(received.frame.bytes_mut(), super::LAN_MAC, next);
                if let Err(frame) = port.transmit(LAN, received.frame) {
                    port.recycle(frame);
                }
            }
            port.flush();
        }
    }

    /// The line of a key, and its tag.
    fn place(&self, key: Key) -> (usize, u64) {
        let product = u128::from(key[0] ^ 0x9e37_79b9_7f4a_7c15) * u128::from(key[1] ^ 0xc2b2_ae3d_27d4_eb4f);
        let hash = (product >> 64) as u64 ^ product as u64;
        (hash as usize & (self.lines.len() - 1), hash >> 32 << 32)
    }

    /// The number of the entry with this tag.
    fn find(&self, (mut line, tag): (usize, u64)) -> usize {
        loop {
            let slots = &self.lines[line].0;
            if let Some(slot) = slots.iter().find(|slot| **slot & !0xffff_ffff == tag && **slot != 0) {
                return (*slot as u32 - 1) as usize;
            }
            line = (line + 1) & (self.lines.len() - 1);
        }
    }
}

fn read(frame: &[u8]) -> Key {
    let frame = &frame[..PORTS.end];
    let addresses = u64::from_ne_bytes(frame[ADDRESSES].try_into().expect("8 bytes"));
    let ports = u32::from_ne_bytes(frame[PORTS].try_into().expect("4 bytes"));
    [addresses, u64::from(ports) << 8 | u64::from(frame[PROTOCOL])]
}
