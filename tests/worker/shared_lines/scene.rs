//! Two workers with one table, each on its thread, which treat one packet at a time, and the stores of each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use xvs_dataplane::clock::Clock;
use xvs_dataplane::port::{Port, Received, Woken};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::worker::Worker;
use xvs_proto::{LinkId, Protocol};
use xvs_xdp::{Census, Frame};

use super::stores::Stores;
use crate::rig::{self, LAN, Loop, Order, Side, Variant};

const CONNECTIONS: usize = 1024;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;

/// What a worker receives before it sleeps again.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packet {
    /// Nothing; only time has passed.
    None,
    /// A packet of this kind and flow; all fragments of a datagram.
    Of(Side, u32),
    /// A client's packet that its worker counts in [`COUNTED`].
    Counted(u32),
    /// A client's segment with these control bits.
    Flagged(u32, u8),
    /// The reply to the packet that was sent last, with these control bits if it is a segment.
    Reply(u8),
    /// Those of a flow.
    FirstFragment(u32),
    LastFragment(u32),
}

/// What workers must not have.
static COUNTED: AtomicU64 = AtomicU64::new(0);

/// The workers, from the thread that gives them packets.
pub(super) struct Scene {
    pub(super) variant: Variant,
    pub(super) clock: Arc<Clock>,
    jobs: [Sender<(Packet, Seen)>; 2],
    done: [Receiver<Done>; 2],
}

/// The lines that a worker has changed, and whether it has sent a frame.
type Done = (Vec<u64>, bool);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Yes,
    No,
}

impl Scene {
    /// Runs the workers of a director as long as `act` uses them. `look` sees the first of them before.
    pub(super) fn run<T, U>(
        variant: Variant,
        stores: &Arc<Mutex<Stores>>,
        look: impl FnOnce(&mut Worker<Loop>) -> T,
        act: impl FnOnce(Self) -> U,
    ) -> (T, U) {
        let mut workers = rig::workers(variant, CONNECTIONS, Memory::SmallPages, 2);
        let looked = look(&mut workers[0]);
        let (clock, sent) = (workers[0].clock.clone(), Arc::default());
        thread::scope(|scope| {
            let channels = [(); 2].map(|()| {
                let ((job, jobs), (ends, done)) = (channel(), channel());
                let Worker { pipeline, port, snapshot, clock, hold, stop } = workers.remove(0);
                let (own_sent, sent) = (Vec::with_capacity(2048), Arc::clone(&sent));
                let (stores, seen, stop_at_end) = (Arc::clone(stores), Seen::No, stop.clone());
                let port = Stepped {
                    port,
                    jobs,
                    done: ends,
                    is_at_job: false,
                    seen,
                    stores,
                    own_sent,
                    sent,
                    stop: stop_at_end,
                };
                let mut worker = Worker { pipeline, port, snapshot, clock, hold, stop };
                scope.spawn(move || worker.run());
                (job, done)
            });
            let [(first, first_done), (second, second_done)] = channels;
            (looked, act(Self { variant, clock, jobs: [first, second], done: [first_done, second_done] }))
        })
    }

    /// Has a worker treat a packet.
    pub(super) fn pass(&self, core: usize, packet: Packet) {
        self.treat(core, packet, Seen::No);
    }

    /// The same.
    pub(super) fn seen(&self, core: usize, packet: Packet) -> Done {
        self.treat(core, packet, Seen::Yes)
    }

    fn treat(&self, core: usize, packet: Packet, seen: Seen) -> Done {
        self.jobs[core].send((packet, seen)).expect("the worker runs");
        self.done[core].recv().expect("the worker sleeps again")
    }
}

/// The port of a worker that gets a packet when it has nothing else to do.
struct Stepped {
    port: Loop,
    jobs: Receiver<(Packet, Seen)>,
    done: Sender<Done>,
    is_at_job: bool,
    seen: Seen,
    stores: Arc<Mutex<Stores>>,
    /// The frame that this worker has sent, and the last one of any worker.
    own_sent: Vec<u8>,
    sent: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
}

impl Stepped {
    fn offer(&mut self, packet: Packet) {
        let (side, flow, count) = match packet {
            Packet::None => return,
            Packet::Of(Side::Fragments, flow) => (Side::Fragments, flow, 2),
            Packet::Of(side, flow) => (side, flow, 1),
            Packet::Counted(flow) | Packet::Flagged(flow, _) => (Side::Requests, flow, 1),
            Packet::Reply(_) => (Side::Requests, 0, 1),
            Packet::FirstFragment(flow) | Packet::LastFragment(flow) => (Side::Fragments, flow, 1),
        };
        self.port.begun = matches!(packet, Packet::LastFragment(_)).then_some(flow);
        self.port.first = flow;
        self.port.offer(side, Order::Drawn, 1, count);
        let sent = self.sent.lock().expect("no worker has panicked").clone();
        self.port.received = Some(Box::new(move |burst| match packet {
            Packet::Counted(_) => _ = COUNTED.fetch_add(1, Ordering::Relaxed),
            Packet::Flagged(_, flags) => burst[0].frame.bytes_mut()[FLAGS] = flags,
            Packet::Reply(flags) => make_reply(&mut burst[0], &sent, flags),
            _ => {}
        }));
    }
}

/// Where the control bits of TCP are, over IPv4.
const FLAGS: usize = 14 + 20 + 13;

/// Makes a frame the reply to another one, over IPv4.
fn make_reply(received: &mut Received, request: &[u8], flags: u8) {
    received.link = LAN;
    assert!(received.frame.resize(request.len()), "a frame holds 2 KiB");
    let bytes = received.frame.bytes_mut();
    bytes.copy_from_slice(request);
    for (from, to, len) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        bytes[to..to + len].copy_from_slice(&request[from..from + len]);
        bytes[from..from + len].copy_from_slice(&request[to..to + len]);
    }
    if bytes[23] == Protocol::TCP.0 {
        bytes[FLAGS] = flags;
    }
}

impl Port for Stepped {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        self.port.receive(burst);
    }

    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        self.own_sent.clear();
        self.own_sent.extend_from_slice(frame.bytes());
        self.port.transmit(link, frame)
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        self.port.pass_to_kernel(link, frame)
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.port.allocate()
    }

    fn recycle(&mut self, frame: Frame) {
        self.port.recycle(frame);
    }

    fn flush(&mut self) {}

    fn wait(&mut self, _: Option<Duration>) -> Woken {
        if self.is_at_job {
            let lines = if self.seen == Seen::Yes {
                self.stores.lock().expect("no worker has panicked").end()
            } else {
                Vec::new()
            };
            let is_sent = !self.own_sent.is_empty();
            if is_sent {
                self.sent.lock().expect("no worker has panicked").clone_from(&self.own_sent);
                self.own_sent.clear();
            }
            self.done.send((lines, is_sent)).expect("the scene waits");
        }
        let Ok((packet, seen)) = self.jobs.recv() else {
            self.stop.store(true, Ordering::Relaxed);
            return Woken::TimedOut;
        };
        (self.is_at_job, self.seen) = (true, seen);
        self.offer(packet);
        if seen == Seen::Yes {
            self.stores.lock().expect("no worker has panicked").begin();
        }
        Woken::Ready
    }

    fn census(&self) -> Census {
        self.port.census()
    }
}
