//! A port that copies frames for active captures.
//!
//! Exists for one burst, around the tagged port, and only while there are captures. Received frames are copied before
//! any stage reads them, sent frames when they are sent. The order in which the frames of the burst are settled
//! determines which copies belong to one packet. No stage depends on captures. Frames are shown without the tags of
//! known VLANs, on the VLAN's interface.

use std::sync::MutexGuard;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xvs_proto::LinkId;
use xvs_xdp::{BURST, Census, Frame};

use super::filter::Judged;
use super::judge::Subject;
use super::lane::{Capture, FrameDirection, Lane, MOST, Seen};
use crate::burst::flows::Flows;
use crate::port::vlan_and_bond::Tagged;
use crate::port::{Port, Received, Woken};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// A port that may be watched. It is notified when a burst has been received, and when the burst is completely
/// processed.
pub trait Watch: Port {
    /// A burst was received, whose first `copies` frames are copies of frames that another worker received.
    fn arrived(&mut self, burst: &[Received], copies: usize, flows: &Flows);

    /// All frames of the burst have been sent or disposed of.
    fn ended(&mut self, flows: &Flows);
}

/// A port without captures.
impl<P: Port> Watch for Tagged<'_, P> {
    fn arrived(&mut self, _: &[Received], _: usize, _: &Flows) {}

    fn ended(&mut self, _: &Flows) {}
}

/// A port, and the captures that watch it.
pub struct Watched<'a, P> {
    port: &'a mut P,
    snapshot: &'a Snapshot,
    worker: usize,
    watches: [Option<Watching<'a>>; MOST],
    nanoseconds: u64,
    /// The frame numbers of the burst's frames.
    numbers: [u32; BURST],
    frames: usize,
    /// The number of frames that are settled.
    settled: usize,
    /// Whether the burst was received. Before that, packets from earlier bursts that have waited for their next hop are
    /// sent.
    begun: bool,
}

/// A worker's lane of a capture.
struct Watching<'a> {
    capture: &'a Capture,
    lane: MutexGuard<'a, Lane>,
}

/// The result of an attempt to copy.
#[derive(Clone, Copy)]
enum Copied {
    No,
    Yes,
    Lost,
}

impl<'a, P: Port> Watched<'a, P> {
    /// This port, watched by the snapshot's captures for this worker.
    pub fn new(port: &'a mut P, snapshot: &'a Snapshot, worker: usize) -> Self {
        let mut watches = [const { None }; MOST];
        for (watch, capture) in watches.iter_mut().zip(snapshot.captures.iter()) {
            // Only this worker takes the lock.
            let lane = capture.lanes.get(worker).and_then(|lane| lane.try_lock().ok());
            *watch = lane.map(|lane| Watching { capture, lane });
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            port,
            snapshot,
            worker,
            watches,
            nanoseconds: since.as_nanos() as u64,
            numbers: [0; BURST],
            frames: 0,
            settled: 0,
            begun: false,
        }
    }

    /// Whether a frame is the next one of the burst to be settled.
    fn is_current(&self, frame: &Frame) -> bool {
        self.settled < self.frames && self.numbers[self.settled] == frame.number()
    }

    /// Captures a frame that was received in an earlier burst and is disposed of now.
    fn show_before(&mut self, link: LinkId, frame: &Frame, verdict: Verdict) {
        if self.is_current(frame) {
            return;
        }
        let subject = Subject::of(frame, None);
        for Watching { capture, lane } in self.watches.iter_mut().flatten() {
            let lane = &mut **lane;
            lane.packets += 1;
            let was_wanted = lane.forget_held(frame.number());
            let wanted = capture.filter.fate.takes(verdict)
                && (was_wanted
                    || capture.filter.judge(link, Some(&subject), self.snapshot) == Judged::Wanted);
            match if wanted { lane.take() } else { None } {
                Some(mut record) => {
                    record.copy(self.nanoseconds, link, FrameDirection::Earlier, frame);
                    lane.push(record, verdict);
                }
                None => capture.count_missed(self.worker, link, u64::from(wanted)),
            }
            // Frames that were sent since the last frame was settled are ICMP errors to the sender of this one.
            let from =
                lane.left.iter().rposition(|(place, _)| *place != self.settled).map_or(0, |place| place + 1);
            while lane.left.len() > from {
                let (_, record) = lane.left.remove(from);
                if wanted { lane.push(record, verdict) } else { lane.free.push(record) }
            }
        }
    }

    /// Captures and sends a packet that was captured as held in an earlier burst, or sends another one.
    fn transmit_held(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let mut records = [const { None }; MOST];
        for (watch, record) in self.watches.iter_mut().zip(&mut records) {
            let Some(Watching { capture, lane }) = watch else { continue };
            if lane.forget_held(frame.number()) {
                *record = lane.take();
                match record {
                    Some(record) => record.copy(self.nanoseconds, link, FrameDirection::Out, &frame),
                    None => capture.count_missed(self.worker, link, 1),
                }
            }
        }
        let sent = self.port.transmit(link, frame);
        for (watch, record) in self.watches.iter_mut().zip(records) {
            let (Some(Watching { lane, .. }), Some(record)) = (watch, record) else { continue };
            lane.packets += 1;
            if sent.is_ok() { lane.push(record, Verdict::Transmit(link)) } else { lane.free.push(record) }
        }
        sent
    }
}

impl Watching<'_> {
    /// Copies a frame that is about to be sent because of the packet with this index in the burst.
    fn copy(
        &mut self,
        place: usize,
        originated: bool,
        nanoseconds: u64,
        link: LinkId,
        frame: &Frame,
    ) -> Copied {
        let lane = &mut *self.lane;
        // If the director originated the frame, it is copied: an ICMP error may be about another packet, and fragments
        // are rare.
        if let Some(seen) = lane.seen.get(place)
            && !originated
            && (seen.judged == Judged::Unwanted || !self.capture.filter.fate.takes(Verdict::Transmit(link)))
        {
            return Copied::No;
        }
        match lane.take() {
            Some(mut record) => {
                record.copy(nanoseconds, link, FrameDirection::Out, frame);
                lane.left.push((place, record));
                Copied::Yes
            }
            None => Copied::Lost,
        }
    }
}

impl<P: Port> Watch for Watched<'_, P> {
    fn arrived(&mut self, burst: &[Received], copies: usize, flows: &Flows) {
        (self.frames, self.begun) = (burst.len(), true);
        let asks = self.watches.iter().flatten().any(|watch| watch.capture.filter.asks_for_ends());
        for (place, Received { link, frame }) in burst.iter().enumerate() {
            self.numbers[place] = frame.number();
            let subject = asks.then(|| Subject::of(frame, Some(flows)));
            for Watching { capture, lane } in self.watches.iter_mut().flatten() {
                let lane = &mut **lane;
                let judged = capture.filter.judge(*link, subject.as_ref(), self.snapshot);
                let mut seen = Seen { judged, record: None, lost: 0, link: *link, verdict: Verdict::Held };
                if judged != Judged::Unwanted {
                    seen.record = lane.take();
                    let direction = if place < copies { FrameDirection::Earlier } else { FrameDirection::In };
                    match &mut seen.record {
                        Some(record) => record.copy(self.nanoseconds, *link, direction, frame),
                        None => seen.lost += 1,
                    }
                }
                lane.seen.push(seen);
            }
        }
    }

    fn ended(&mut self, flows: &Flows) {
        for Watching { capture, lane } in self.watches.iter_mut().flatten() {
            let lane = &mut **lane;
            let mut all = std::mem::take(&mut lane.seen);
            let mut left = std::mem::take(&mut lane.left);
            let mut next = left.drain(..).peekable();
            for (place, seen) in all.drain(..).enumerate() {
                let wanted = capture.filter.fate.takes(seen.verdict)
                    && match &seen.judged {
                        Judged::Wanted => true,
                        Judged::Perhaps(flow) => capture.filter.takes_begun(flow, flows),
                        Judged::Unwanted => false,
                    };
                lane.packets += 1;
                if wanted {
                    capture.count_missed(self.worker, seen.link, seen.lost);
                }
                if wanted && matches!(seen.verdict, Verdict::Waiting(_)) {
                    lane.note_held(self.numbers[place]);
                }
                let its_own = std::iter::from_fn(|| next.next_if(|(of, _)| *of == place));
                for record in seen.record.into_iter().chain(its_own.map(|(_, record)| record)) {
                    if wanted { lane.push(record, seen.verdict) } else { lane.free.push(record) }
                }
            }
            next.for_each(|(_, record)| lane.free.push(record));
            // Their memory is reused.
            lane.seen = all;
            lane.left = left;
            lane.hand_over();
        }
    }
}

impl<P: Port> Port for Watched<'_, P> {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        self.port.receive(burst);
    }

    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        if !self.begun {
            return self.transmit_held(link, frame);
        }
        let place = self.settled;
        let originated = !self.is_current(&frame);
        let mut copied = [Copied::No; MOST];
        for (watch, copied) in self.watches.iter_mut().zip(&mut copied) {
            let Some(watch) = watch else { continue };
            *copied = watch.copy(place, originated, self.nanoseconds, link, &frame);
        }
        let sent = self.port.transmit(link, frame);
        for (watch, copied) in self.watches.iter_mut().zip(copied) {
            let Some(Watching { lane, .. }) = watch else { continue };
            match copied {
                Copied::Yes if sent.is_err() => {
                    if let Some((_, record)) = lane.left.pop() {
                        lane.free.push(record);
                    }
                }
                Copied::Lost if sent.is_ok() => {
                    if let Some(seen) = lane.seen.get_mut(place) {
                        seen.lost += 1;
                    }
                }
                _ => {}
            }
        }
        sent
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        self.show_before(link, &frame, Verdict::PassToKernel);
        self.port.pass_to_kernel(link, frame)
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.port.allocate()
    }

    fn recycle(&mut self, frame: Frame) {
        self.port.recycle(frame);
    }

    fn discard(&mut self, received: Received, reason: DropReason) {
        self.show_before(received.link, &received.frame, Verdict::Drop(reason));
        self.port.recycle(received.frame);
    }

    fn settled(&mut self, verdict: Verdict) {
        for Watching { lane, .. } in self.watches.iter_mut().flatten() {
            if let Some(seen) = lane.seen.get_mut(self.settled) {
                seen.verdict = verdict;
            }
        }
        self.settled += 1;
    }

    fn flush(&mut self) {
        self.port.flush();
    }

    fn wait(&mut self, at_most: Option<Duration>) -> Woken {
        self.port.wait(at_most)
    }

    fn census(&self) -> Census {
        self.port.census()
    }
}
