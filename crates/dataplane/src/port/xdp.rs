//! The wire as a [`Port`]: one worker's AF_XDP sockets, the TAPs back to the kernel, and the worker's waker.
//!
//! Created by the control thread and moved to the worker's thread. Frames are received from the queues of all
//! interfaces in turn, and leave on the first queue of their interface that the worker owns. The kernel is notified of
//! transmitted frames by [`Port::flush`]. While the kernel has not taken all of them, [`Port::wait`] returns after a
//! millisecond, and the worker flushes again; while a driver has no frame for receiving, after ten milliseconds.
//! Nothing is allocated after [`XdpPort::open`].
//!
//! One worker also reads the frames that this machine itself sends, while they are redirected to the TAPs: when a wait
//! has found a frame in one, otherwise at every 32nd burst. Cost: a system call for each frame, and one for each empty
//! TAP.

use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{array, io};

use xvs_proto::{LinkId, ethernet};
use xvs_xdp::polling::Poll;
use xvs_xdp::{BURST, Census, Frame, Sockets, Statistics};

pub use super::waiting::Waker;
use super::waiting::{Arrived, Waiting};
use super::{KernelDrops, Port, Received, Woken};
use crate::counters::Counter;
use crate::steering::reinject::Reinjector;

/// The most sockets of one worker.
pub const MAX_SOCKETS: usize = 63;

/// The longest frame that this machine sends, with a tag: that of the loopback interface.
pub(crate) const OWN_MAX_BYTES: usize = ethernet::HEADER_LEN + ethernet::TAG_LEN + (1 << 16);

/// The number of bursts between two checks of the TAPs by a worker that does not wait.
const OWN_EVERY: u32 = 32;

/// The time that a worker with [`Poll::Adaptive`] polls for frames before it sleeps: a few times the duration of a
/// wake-up.
const LOOKS_FOR: Duration = Duration::from_micros(100);

/// Whether a port reads the frames that this machine itself sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnPackets {
    /// It does. Only one port may.
    Read,
    /// Another port does.
    Leave,
}

/// One worker's port to the wire.
pub struct XdpPort {
    sockets: Sockets,
    /// Indexed by link.
    to_kernel: Vec<Arc<Reinjector>>,
    waiting: Waiting,
    waker: Waker,
    /// The longest time until the next flush.
    flush_within: Option<Duration>,
    poll: Poll,
    /// Whether the last check found frames.
    had_frames: bool,
    /// When the worker began to poll without finding frames.
    idle_since: Option<Instant>,
    counters: Arc<[SocketCounters]>,
    own: OwnPackets,
    /// The TAP of the loopback interface, once it is needed.
    loopback: Arc<OnceLock<Arc<Reinjector>>>,
    /// Whether a wait ends for the TAP of the loopback interface.
    waits_for_loopback: bool,
    /// The number of bursts until the next check of the TAPs.
    own_due: u32,
    /// Room for any frame that this machine sends.
    own_frame: Box<[u8]>,
    /// The link and length of a frame in the buffer that no burst contains yet.
    own_read: Option<(LinkId, usize)>,
    /// The number of slots that frames from this machine may still use in this burst.
    own_slots: usize,
}

impl XdpPort {
    /// A port for these sockets. `to_kernel` contains the reinjector of each of their links, in the same order. `waker`
    /// ends its waits. Only one port with these reinjectors may read the frames that this machine sends. `loopback` is
    /// filled when a client on this machine may have a service. If it polls, the sockets must prefer busy polling.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if the lengths differ or there are more than [`MAX_SOCKETS`] sockets; the
    /// kernel's error if it has no more descriptors.
    pub fn open(
        sockets: Sockets,
        to_kernel: Vec<Arc<Reinjector>>,
        waker: Waker,
        own: OwnPackets,
        loopback: Arc<OnceLock<Arc<Reinjector>>>,
        poll: Poll,
    ) -> io::Result<Self> {
        if to_kernel.len() != sockets.links() || sockets.fds().count() > MAX_SOCKETS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let waiting = Waiting::open(sockets.fds(), &waker)?;
        if own == OwnPackets::Read {
            to_kernel.iter().try_for_each(|tap| waiting.add_tap(tap.as_fd()))?;
        }
        Ok(Self {
            counters: sockets.statistics().map(|(link, queue, _)| SocketCounters::new(link, queue)).collect(),
            sockets,
            to_kernel,
            waiting,
            waker,
            flush_within: None,
            poll,
            had_frames: false,
            idle_since: None,
            own,
            loopback,
            waits_for_loopback: false,
            own_due: 0,
            own_frame: vec![0; if own == OwnPackets::Read { OWN_MAX_BYTES } else { 0 }].into(),
            own_read: None,
            own_slots: 0,
        })
    }

    /// The counters of each socket, for any thread.
    pub fn socket_counters(&self) -> Arc<[SocketCounters]> {
        self.counters.clone()
    }

    /// A waker that ends this port's wait.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The number of frames in TX rings that are not known to be sent.
    pub fn unsent(&self) -> u64 {
        self.sockets.statistics().map(|(_, _, queue)| u64::from(queue.lent_to_transmit)).sum()
    }

    /// The sockets, for their mode and statistics.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }
}

impl Port for XdpPort {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let before = burst.len();
        let room = BURST.saturating_sub(before);
        if self.poll != Poll::Sleep {
            self.sockets.drive();
        }
        self.sockets.receive(room, |link, frame| burst.push(Received { link, frame }));
        if self.own == OwnPackets::Read {
            match self.own_due {
                0 => self.receive_own(burst),
                due => self.own_due = due - 1,
            }
        }
        self.had_frames = burst.len() > before;
    }

    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        // No socket has the machine's own end of a link.
        self.sockets.transmit(link, frame).or_else(|frame| match link {
            LinkId::LOOPBACK => self.pass_to_kernel(link, frame),
            link if link.is_own() => self.pass_to_kernel(link.wire(), frame),
            _ => Err(frame),
        })
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let reinjector = match link {
            LinkId::LOOPBACK => self.loopback.get(),
            link if link.is_own() => return self.sockets.transmit(link.wire(), frame),
            link => self.to_kernel.get(usize::from(link.0)),
        };
        if reinjector.is_none_or(|reinjector| reinjector.inject(&frame).is_err()) {
            return Err(frame);
        }
        self.sockets.pool().put(frame);
        Ok(())
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.sockets.pool().take()
    }

    fn recycle(&mut self, frame: Frame) {
        self.sockets.pool().put(frame);
    }

    fn flush(&mut self) {
        self.flush_within = self.sockets.flush();
    }

    fn wait(&mut self, at_most: Option<Duration>) -> Woken {
        // There may be more frames, which the kernel does not announce again.
        if self.had_frames {
            self.idle_since = None;
            return Woken::Ready;
        }
        match self.poll {
            Poll::Busy => return Woken::Ready,
            Poll::Adaptive if self.idle_since.get_or_insert_with(Instant::now).elapsed() < LOOKS_FOR => {
                return Woken::Ready;
            }
            Poll::Adaptive | Poll::Sleep => {}
        }
        if self.own == OwnPackets::Read && !self.waits_for_loopback {
            // If the kernel has no memory for it, the next wait tries again.
            self.waits_for_loopback =
                self.loopback.get().is_some_and(|tap| self.waiting.add_tap(tap.as_fd()).is_ok());
        }
        match self.waiting.wait([at_most, self.flush_within].into_iter().flatten().min()) {
            Arrived::Nothing => Woken::TimedOut,
            Arrived::Something => Woken::Ready,
            Arrived::Own => {
                self.own_due = 0;
                Woken::Ready
            }
        }
    }

    fn census(&self) -> Census {
        self.sockets.census()
    }

    fn kernel_drops(&self) -> KernelDrops {
        self.sockets.statistics().zip(&*self.counters).fold(
            KernelDrops::default(),
            |sum, ((.., queue), counters)| {
                counters.update(&queue);
                KernelDrops {
                    ring_full: sum.ring_full + queue.receive_ring_full,
                    fill_ring_empty: sum.fill_ring_empty + queue.fill_ring_empty,
                    other: sum.other + queue.receive_dropped,
                }
            },
        )
    }
}

impl XdpPort {
    /// Appends frames that this machine itself has sent, in at most the slots of one burst: long frames must not take
    /// the slots for received ones.
    fn receive_own(&mut self, burst: &mut Vec<Received>) {
        self.own_due = OWN_EVERY;
        self.own_slots = BURST;
        if !self.take_own(burst) {
            return;
        }
        for place in 0..=self.to_kernel.len() {
            let (link, tap) = match self.to_kernel.get(place) {
                Some(tap) => (LinkId(place as u16).own(), Some(tap)),
                None => (LinkId::LOOPBACK, self.loopback.get()),
            };
            let Some(tap) = tap.filter(|tap| tap.is_read()).cloned() else { continue };
            while let Ok(length) = tap.read(&mut self.own_frame) {
                self.own_read = Some((link, length));
                if !self.take_own(burst) {
                    return;
                }
            }
        }
    }

    /// Appends the frame that was read last. Returns `false` and keeps it for the next burst if there is no room.
    fn take_own(&mut self, burst: &mut Vec<Received>) -> bool {
        let Some((link, length)) = self.own_read else { return true };
        let Some(mut frame) =
            (burst.len() < BURST && self.own_slots > 0).then(|| self.allocate_packet(length)).flatten()
        else {
            self.own_due = 0;
            return false;
        };
        frame.write(|at, part| {
            part.copy_from_slice(&self.own_frame[at..][..part.len()]);
            self.own_slots = self.own_slots.saturating_sub(1);
        });
        burst.push(Received { link, frame });
        self.own_read = None;
        true
    }
}

/// The last known statistics of one socket. The worker updates them whenever it reads the kernel's drop counters, about
/// a second after packets arrived. One writer: the worker.
#[derive(Debug)]
pub struct SocketCounters {
    /// The interface.
    pub link: LinkId,
    /// The queue.
    pub queue: u32,
    counts: [Counter; 7],
    lent: [Counter; 2],
}

impl SocketCounters {
    fn new(link: LinkId, queue: u32) -> Self {
        Self { link, queue, counts: Default::default(), lent: Default::default() }
    }

    /// Updates the counters. The socket of a removed interface has no counts any more; the counters then keep their
    /// values.
    fn update(&self, now: &Statistics) {
        let counts = [
            now.receive_ring_full,
            now.fill_ring_empty,
            now.receive_dropped,
            now.fill_invalid,
            now.transmit_invalid,
            now.transmit_ring_empty,
            now.descriptors_refused,
        ];
        for (counter, count) in self.counts.iter().zip(counts) {
            counter.set(count.max(counter.value()));
        }
        for (counter, lent) in self.lent.iter().zip([now.lent_to_receive, now.lent_to_transmit]) {
            counter.set(lent.into());
        }
    }

    /// The last known statistics.
    pub fn statistics(&self) -> Statistics {
        let [
            receive_ring_full,
            fill_ring_empty,
            receive_dropped,
            fill_invalid,
            transmit_invalid,
            transmit_ring_empty,
            descriptors_refused,
        ] = array::from_fn(|place| self.counts[place].value());
        // These were stored from 32-bit numbers.
        let [lent_to_receive, lent_to_transmit] = array::from_fn(|place| self.lent[place].value() as u32);
        Statistics {
            receive_ring_full,
            fill_ring_empty,
            receive_dropped,
            fill_invalid,
            transmit_invalid,
            transmit_ring_empty,
            descriptors_refused,
            lent_to_receive,
            lent_to_transmit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_a_socket_are_the_last_known_and_counts_never_decrease() {
        let counters = SocketCounters::new(LinkId(1), 7);
        let now = Statistics {
            receive_ring_full: 1,
            fill_ring_empty: 2,
            receive_dropped: 3,
            fill_invalid: 4,
            transmit_invalid: 5,
            transmit_ring_empty: 6,
            descriptors_refused: 7,
            lent_to_receive: 8,
            lent_to_transmit: 9,
        };
        counters.update(&now);
        assert_eq!(counters.statistics(), now);
        counters.update(&Statistics::default());
        assert_eq!(counters.statistics(), Statistics { lent_to_receive: 0, lent_to_transmit: 0, ..now });
    }
}
