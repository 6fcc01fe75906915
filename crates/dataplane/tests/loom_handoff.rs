//! Models of the handoff: workers that receive fragments of one datagram, and of another one in the same slot,
//! interleaved in every order that loom explores with a bounded number of preemptions. In every order one worker gets
//! all fragments of a datagram, and the slot is free in the end.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xvs-dataplane --release --target-dir target/loom --test loom_handoff`
//!
//! There are two slots here, and all odd tags share one of them. The queues are another crate's, which loom does not
//! follow.

#![cfg(loom)]

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread;
use xvs_dataplane::general_path::reassembly::handoff::Handoff;
use xvs_proto::LinkId;
use xvs_xdp::{Frame, FrameLayout, FramePool};

const PREEMPTIONS: usize = 4;
/// The number of fragments of each datagram.
const ALL: usize = 2;

/// A frame of 60 bytes.
fn frame() -> Frame {
    let layout = FrameLayout { frame_size_bytes: 64, headroom_bytes: 0, frames: 1 };
    let mut frame = FramePool::in_memory(layout).take().unwrap();
    assert!(frame.resize(60));
    frame
}

/// The part of a worker that handles fragments.
struct Worker {
    number: usize,
    handoff: Arc<Handoff>,
    /// Waiting datagrams, each with the number of its fragments here.
    held: Vec<(u64, usize)>,
    whole: Vec<u64>,
    sent: usize,
}

impl Worker {
    /// A worker that has received these fragments.
    fn new(handoff: &Arc<Handoff>, number: usize, met: &[u64]) -> Self {
        let (held, whole) = (Vec::new(), Vec::new());
        let mut this = Self { number, handoff: handoff.clone(), held, whole, sent: 0 };
        met.iter().for_each(|tag| this.meet(*tag));
        this
    }

    fn meet(&mut self, tag: u64) {
        match self.held.iter().position(|(held, _)| *held == tag) {
            Some(place) => {
                self.held[place].1 += 1;
                if self.held[place].1 == ALL {
                    self.held.remove(place);
                    self.handoff.release(tag);
                    self.whole.push(tag);
                }
            }
            None => match self.handoff.claim(tag, self.number) {
                gatherer if gatherer == self.number => self.held.push((tag, 1)),
                gatherer => {
                    self.sent += 1;
                    assert!(self.handoff.send(gatherer, LinkId(tag as u16), &frame()), "there is room");
                }
            },
        }
    }

    fn look(&mut self) {
        while let Some(handed) = self.handoff.receive(self.number) {
            let (LinkId(tag), _) = handed.frame();
            self.handoff.put_back(handed);
            self.meet(tag.into());
        }
    }

    fn run(mut self, meets: u64) -> thread::JoinHandle<Self> {
        thread::spawn(move || {
            self.meet(meets);
            self.look();
            self
        })
    }
}

/// Lets each of these workers receive a fragment at the same time, and then run until no fragment is in a queue.
/// Returns the completed datagrams, and the number of fragments that each worker has handed over.
fn after(handoff: &Arc<Handoff>, workers: Vec<(Worker, u64)>) -> (Vec<u64>, Vec<usize>) {
    let threads: Vec<_> = workers.into_iter().map(|(worker, meets)| worker.run(meets)).collect();
    let mut workers: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    while (0..workers.len()).any(|number| handoff.has_frames(number)) {
        workers.iter_mut().for_each(Worker::look);
    }
    assert!(workers.iter().all(|worker| worker.held.is_empty()), "one worker has all of each");
    assert_eq!(handoff.claim(99, 1), 1, "the slot is free");
    let sent = workers.iter().map(|worker| worker.sent).collect();
    let mut whole: Vec<_> = workers.into_iter().flat_map(|worker| worker.whole).collect();
    whole.sort_unstable();
    (whole, sent)
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

#[test]
fn one_of_two_workers_that_receive_one_datagram_gets_all_of_it() {
    explore(|| {
        let handoff = Arc::new(Handoff::new(2));
        let worker = |number| (Worker::new(&handoff, number, &[]), 7);
        let (whole, sent) = after(&handoff, vec![worker(0), worker(1)]);
        assert_eq!((whole, sent.iter().sum()), (vec![7], 1));
    });
}

#[test]
fn a_datagram_is_completed_while_another_releases_its_slot() {
    static CASES: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    explore(|| {
        let handoff = Arc::new(Handoff::new(3));
        let gatherer = (Worker::new(&handoff, 0, &[5]), 5);
        let worker = |number| (Worker::new(&handoff, number, &[]), 7);
        let (whole, sent) = after(&handoff, vec![gatherer, worker(1), worker(2)]);
        assert_eq!(whole, [5, 7]);
        // Either both send to the owner of the slot, or one sends to the other, or the owner forwards a fragment after
        // its release.
        let case = if sent[0] > 0 { 2 } else { 2 - sent[1] - sent[2] };
        CASES[case].fetch_add(1, Relaxed);
    });
    assert!(CASES.iter().all(|times| times.load(Relaxed) > 0), "{CASES:?}");
}

#[test]
fn a_worker_that_owns_the_slot_keeps_it_for_the_second_datagram() {
    explore(|| {
        let handoff = Arc::new(Handoff::new(2));
        let both = (Worker::new(&handoff, 0, &[5, 7]), 5);
        let other = (Worker::new(&handoff, 1, &[]), 7);
        assert_eq!(after(&handoff, vec![both, other]), (vec![5, 7], vec![0, 1]));
    });
}
