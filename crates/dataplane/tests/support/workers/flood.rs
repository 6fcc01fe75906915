//! Floods of forged connections into a full table, with real clients among them.

use std::collections::VecDeque;

use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::verdict::Verdict;

use super::{ACK, Flow, SYN, Workers, random};

/// When a client without an answer retransmits its SYN, in milliseconds after the first.
const RETRIES: [u64; 2] = [1000, 3000];
/// The round-trip time of a client, in milliseconds.
const ROUND_TRIP: u64 = 100;

pub(crate) fn is_sent(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Transmit(_))
}

/// A client that tries to connect, with its next packet and the time of it.
struct Handshake {
    flow: Flow,
    begun: u64,
    due: u64,
    syns: usize,
    answered: bool,
    /// ACKs that were sent, of three: the handshake's, a request and its reply's.
    acknowledged: u32,
}

/// Sends as many packets as prove a client under NAT. Returns the verdict on the first one; after a
/// drop it sends no other.
pub(crate) fn prove(workers: &mut Workers, flow: &Flow) -> Verdict {
    let verdict = workers.worker(0).packet(flow.request(SYN));
    for _ in 0..3 * u32::from(is_sent(verdict)) {
        assert!(is_sent(workers.worker(0).packet(flow.request(ACK))));
    }
    verdict
}

/// Sends `syns` SYNs from random clients within a minute, to workers in turn, each SYN followed by packets with these
/// flags. Meanwhile 1,000 established connections continue and 1,000 clients try to connect. Returns how many of these
/// succeed, and how many are still in the table.
pub(crate) fn flooded(count: usize, capacity: usize, syns: usize, behind: &[u8]) -> (usize, usize) {
    let mut workers = Workers::new(capacity, count);
    let established: Vec<_> = (0..1000).map(|number| Flow::direct(1, number)).collect();
    for flow in &established {
        assert!(is_sent(prove(&mut workers, flow)));
        for _ in 0..12 {
            assert!(is_sent(workers.worker(0).packet(flow.request(ACK))));
        }
    }
    let bursts = (syns * (1 + behind.len())).div_ceil(62);
    let mut random = random(1);
    let mut waiting: VecDeque<Handshake> = VecDeque::new();
    let (mut begun, mut connected) = (0, Vec::new());
    for burst in 0..bursts + bursts / 10 {
        let worker = burst % count;
        let now = (burst * 60_000 / bursts) as u64;
        workers.set_clock(now);
        while begun < 1000 && begun * bursts < burst * 1000 {
            let flow = Flow::direct(2, begun as u32);
            waiting.push_back(Handshake {
                flow,
                begun: now,
                due: now,
                syns: 0,
                answered: false,
                acknowledged: 0,
            });
            begun += 1;
        }
        let kept = &established[burst % established.len()];
        let mut frames = vec![kept.request(ACK)];
        let due: Vec<_> = (0..waiting.len()).filter(|&at| waiting[at].due <= now).take(8).collect();
        let real = |handshake: &Handshake| handshake.flow.request(if handshake.answered { ACK } else { SYN });
        frames.extend(due.iter().map(|&at| real(&waiting[at])));
        while frames.len() + behind.len() < 64 && burst < bursts {
            let spoofed = Flow::direct(0, (random() >> 32) as u32);
            frames.push(spoofed.request(SYN));
            frames.extend(behind.iter().map(|flags| spoofed.request(*flags)));
        }
        let verdicts = workers.worker(worker).burst(&frames);
        assert!(is_sent(verdicts[0]), "an established connection lost a packet: {:?}", verdicts[0]);
        for (&at, &verdict) in due.iter().zip(&verdicts[1..]) {
            let handshake = &mut waiting[at];
            if !handshake.answered {
                handshake.syns += 1;
            }
            match (handshake.answered, is_sent(verdict)) {
                (false, true) => (handshake.answered, handshake.due) = (true, now + ROUND_TRIP),
                (true, true) if handshake.acknowledged < 2 => {
                    (handshake.acknowledged, handshake.due) = (handshake.acknowledged + 1, now + ROUND_TRIP);
                }
                (true, true) => {
                    connected.push(handshake.flow);
                    handshake.due = u64::MAX;
                }
                // A dropped SYN is retransmitted. An evicted connection is reset, and the client gives up.
                (false, false) if handshake.syns <= RETRIES.len() => {
                    handshake.due = handshake.begun + RETRIES[handshake.syns - 1];
                }
                _ => handshake.due = u64::MAX,
            }
        }
        waiting.retain(|handshake| handshake.due != u64::MAX);
    }
    for flow in &established {
        assert_eq!(workers.state(flow), Some(TcpState::Established as u8));
    }
    let is_there = |flow: &&Flow| workers.state(flow) == Some(TcpState::Established as u8);
    let lasting = connected.iter().filter(is_there).count();
    assert!(workers.counter("evicted") > 0, "the table was never full");
    assert!(workers.table().live() >= capacity, "the reserve costs no capacity");
    workers.assert_counts();
    (connected.len(), lasting)
}
