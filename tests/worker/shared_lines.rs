//! The cache lines that move between workers with each kind of packet.
//!
//! Two workers with one table treat packets of a kind in turns, each those of its own connections unless the kind says
//! otherwise. A line that both change moves from one core to the other with each packet. The names of these lines are
//! compared with those of [`kinds`]. So the test fails if workers share one more counter, or if the word of one is on a
//! line with that of another.
//!
//! A packet is a burst of its own, with all that the worker does before it sleeps again. That is the most that can
//! move: what moves once a burst moves once for 64 packets under load. All packets are to one real server for the same
//! reason. Of the index nothing is counted: which connections have one bucket is chance, one in thousands. The memory
//! is that of this process (`shared_lines/stores.rs`), without rings, BPF maps and the kernel's own. Not here: what a
//! worker only reads of what another has stored, and times.

mod scene;
mod stores;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xvs::own_process::is_own_process;
use xvs_dataplane::worker::Worker;
use xvs_proto::Protocol;
use xvs_sched::ForwardingMethod::{DirectRouting, FullNat, Nat, Tunnel};

use crate::rig::{Loop, Side, Variant};
use scene::{ACK, FIN, Packet, SYN, Scene};
use stores::{LINE, Stores, addresses, range_of};

/// The packets of a kind. The first half brings the lines to the workers, the second half is counted.
const PACKETS: usize = 4;

const PLACE: &str = "the scheduler's place";
const NUMBERS: &str = "a real server's numbers";
const ENTRY: &str = "an entry";
const BUCKET: &str = "a bucket";
/// In [`kinds`]: the epoch after which entries are used again; the handover's queues; this test's own counter.
const OTHER: &str = "other memory";

/// A kind of packet, with the lines that move with one.
struct Kind {
    name: String,
    variant: Variant,
    packets: fn(&mut Kept),
    moves: &'static [&'static str],
}

fn kinds() -> Vec<Kind> {
    let tcp = |method| Variant { protocol: Protocol::TCP, ..Variant::from(method) };
    let mut kinds = Vec::new();
    let mut add = |name: &str, variant: Variant, servers, packets: fn(&mut Kept), moves| {
        let name = format!("{name}, {variant}");
        kinds.push(Kind { name, variant: Variant { servers, ..variant }, packets, moves });
    };
    Variant::all().for_each(|variant| add("request", variant, 1, requests, &[]));
    for method in [DirectRouting, Nat, Tunnel, FullNat] {
        // With one real server alone, `rr` would stay where it is.
        add("first packet", method.into(), 2, first_packets, &[NUMBERS, PLACE]);
    }
    for method in [Nat, FullNat] {
        add("reply", method.into(), 1, replies, &[]);
        add("request, and reply at the other worker", method.into(), 1, replies_elsewhere, &[ENTRY]);
    }
    for method in [DirectRouting, Nat, FullNat] {
        add("request", tcp(method), 1, established, &[]);
        add("SYN", tcp(method), 2, syns, &[NUMBERS, PLACE]);
        add("ACK of the handshake", tcp(method), 1, handshakes, &[]);
        add("FIN", tcp(method), 1, fins, &[NUMBERS]);
        add("end of a connection", method.into(), 1, expiries, &[NUMBERS, OTHER]);
    }
    add("request that both count in one variable", Nat.into(), 1, counted, &[OTHER]);
    add("datagram in fragments", Nat.into(), 1, fragments, &[]);
    add("datagram in fragments at both workers", Nat.into(), 1, divided, &[OTHER; 6]);
    kinds
}

fn requests(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.seen(core, Packet::Of(Side::Requests, flow));
    });
}

fn counted(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.seen(core, Packet::Counted(flow));
    });
}

fn replies(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.scene.pass(core, Packet::Reply(ACK));
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.seen(core, Packet::Reply(ACK));
    });
}

/// Packets of one connection.
fn replies_elsewhere(kept: &mut Kept) {
    each(kept, |kept, core, _| match core {
        0 => kept.seen(0, Packet::Of(Side::Requests, 0)),
        _ => kept.seen(1, Packet::Reply(ACK)),
    });
}

fn first_packets(kept: &mut Kept) {
    each(kept, |kept, core, flow| kept.seen(core, Packet::Of(Side::Requests, flow)));
}

fn syns(kept: &mut Kept) {
    each(kept, |kept, core, flow| kept.seen(core, Packet::Of(Side::First, flow)));
}

fn handshakes(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        open(kept, core, flow);
        kept.seen(core, Packet::Flagged(flow, ACK));
    });
}

fn established(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        open(kept, core, flow);
        kept.scene.pass(core, Packet::Flagged(flow, ACK));
        kept.scene.pass(core, Packet::Flagged(flow, ACK));
        kept.seen(core, Packet::Flagged(flow, ACK));
    });
}

fn fins(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        open(kept, core, flow);
        kept.scene.pass(core, Packet::Flagged(flow, ACK));
        kept.seen(core, Packet::Flagged(flow, FIN | ACK));
    });
}

/// The connections end one after the other, ten seconds apart.
fn expiries(kept: &mut Kept) {
    const APART: Duration = Duration::from_secs(10);
    each(kept, |kept, core, flow| {
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.scene.clock.advance(APART - TURN);
    });
    // To five seconds after the end of the first one, 300 seconds after its packet.
    kept.scene.clock.advance(Duration::from_secs(300 + 5) - APART * PACKETS as u32);
    for packet in 0..PACKETS {
        kept.seen(packet % 2, Packet::None);
        kept.scene.clock.advance(APART);
    }
}

fn fragments(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.seen(core, Packet::Of(Side::Fragments, flow));
    });
}

/// A worker hands the last fragment over to the other, which has the first one and goes on. Then they change roles.
fn divided(kept: &mut Kept) {
    each(kept, |kept, core, flow| {
        kept.scene.pass(core, Packet::Of(Side::Requests, flow));
        kept.seen(core, Packet::FirstFragment(flow));
        kept.seen(1 - core, Packet::LastFragment(flow));
        kept.seen(core, Packet::None);
    });
}

/// Gives each worker flows in turns. All have the same real server.
fn each(kept: &mut Kept, mut treat: impl FnMut(&mut Kept, usize, u32)) {
    let servers = u32::from(kept.scene.variant.servers);
    for packet in 0..PACKETS {
        let (core, flow) = (packet % 2, servers * packet as u32);
        treat(kept, core, flow);
        (1..servers).for_each(|other| kept.scene.pass(core, Packet::Of(Side::First, flow + other)));
        kept.scene.clock.advance(TURN);
    }
}

/// The time between two packets: longer than a tick of timers, so that each packet changes its connection's deadline.
const TURN: Duration = Duration::from_millis(200);

/// A SYN, and the answer to it if the director sees it.
fn open(kept: &Kept, core: usize, flow: u32) {
    kept.scene.pass(core, Packet::Of(Side::First, flow));
    if kept.scene.variant.method != DirectRouting {
        kept.scene.pass(core, Packet::Reply(SYN | ACK));
    }
}

/// The lines that each packet of a kind has changed, with its worker.
struct Kept {
    scene: Scene,
    packets: Vec<(usize, BTreeSet<u64>)>,
}

impl Kept {
    fn seen(&mut self, core: usize, packet: Packet) {
        let (lines, is_sent) = self.scene.seen(core, packet);
        let waits = matches!(packet, Packet::None | Packet::FirstFragment(_) | Packet::LastFragment(_));
        assert!(is_sent || waits, "{packet:?} is not forwarded");
        self.packets.push((core, lines.into_iter().collect()));
    }
}

/// The lines that moved with each packet of the second half: the other worker had changed them before.
fn moved(packets: &[(usize, BTreeSet<u64>)]) -> impl Iterator<Item = BTreeSet<u64>> {
    (packets.len() / 2..packets.len()).map(|number| {
        let (core, lines) = &packets[number];
        let others = packets[..number].iter().filter(|(other, _)| other != core);
        let others: BTreeSet<u64> = others.flat_map(|(_, lines)| lines).copied().collect();
        lines & &others
    })
}

/// Memory that workers share, by its names.
struct Names(Vec<(&'static str, Range<u64>)>);

impl Names {
    fn of(worker: &mut Worker<Loop>) -> Self {
        let snapshot = worker.snapshot.load();
        let mut names = table(worker.pipeline.flows.table().table().entries() as u64);
        for service in snapshot.services.iter() {
            names.push((PLACE, range_of(&*service.place)));
            names.extend(service.members.iter().map(|member| (NUMBERS, range_of(&*member.live))));
        }
        Self(names)
    }

    fn of_line(&self, line: u64) -> String {
        let overlaps = |memory: &Range<u64>| memory.start < line + LINE && line < memory.end;
        let mut names: Vec<_> =
            self.0.iter().filter(|(_, memory)| overlaps(memory)).map(|(name, _)| *name).collect();
        names.dedup();
        if names.is_empty() { OTHER.into() } else { names.join(" and ") }
    }
}

/// The parts of the connection table with this number of entries, which is where its header is.
fn table(entries: u64) -> Vec<(&'static str, Range<u64>)> {
    const HEADER: u64 = 4096;
    let memory = File::open("/proc/self/mem").expect("the own memory");
    let word = |at| {
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, at).map(|()| u64::from_ne_bytes(word)).unwrap_or_default()
    };
    let is_header = |at: &u64| word(*at) == u64::from_be_bytes(*b"xvs-conn") && word(at + 24) == entries;
    let maps = fs::read_to_string("/proc/self/maps").expect("the own memory");
    let mut pages =
        maps.lines().filter(|map| map.contains(" rw")).flat_map(|map| addresses(map).step_by(4096));
    let buckets = pages.find(is_header).expect("a table") + HEADER;
    let first = buckets + 64 * word(buckets - HEADER + 16);
    let header = ("the table's header", buckets - HEADER..buckets);
    vec![header, (BUCKET, buckets..first), (ENTRY, first..first + 64 * entries)]
}

/// The names of the lines that move with a packet of a kind; of the packet with the most.
fn moves(kind: &Kind, stores: &Arc<Mutex<Stores>>) -> Vec<String> {
    let act = |scene| {
        let mut kept = Kept { scene, packets: Vec::new() };
        (kind.packets)(&mut kept);
        kept.packets
    };
    let (names, packets) = Scene::run(kind.variant, stores, Names::of, act);
    let named = moved(&packets).map(|lines| {
        let mut named: Vec<_> = lines.iter().map(|line| names.of_line(*line)).collect();
        named.retain(|name| name != BUCKET);
        named.sort();
        named
    });
    named.max_by_key(Vec::len).unwrap_or_default()
}

#[test]
fn with_each_kind_of_packet_these_lines_move_between_workers() {
    if !is_own_process("shared_lines::with_each_kind_of_packet_these_lines_move_between_workers") {
        return;
    }
    let stores = Arc::new(Mutex::new(Stores::new()));
    let mut wrong = String::new();
    for kind in kinds() {
        let found = moves(&kind, &stores);
        println!("{:<50} {} {}", kind.name, found.len(), found.join(", "));
        // How many lines a queue's slots are on depends on where the allocator puts it.
        let is_other = |names: &[&str]| !names.is_empty() && names.iter().all(|name| *name == OTHER);
        let names: Vec<&str> = found.iter().map(String::as_str).collect();
        let is_fewer = is_other(&names) && is_other(kind.moves) && names.len() < kind.moves.len();
        if names != kind.moves && !is_fewer {
            wrong += &format!("{}: {}\n", kind.name, found.join(", "));
        }
    }
    assert!(wrong.is_empty(), "these lines move:\n{wrong}");
}
