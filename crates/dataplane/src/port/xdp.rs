//! The wire as a [`Port`]: one worker's AF_XDP sockets, the TAPs back to the kernel, and its wake-up.
//!
//! Made by the control thread, moved to the worker's thread. Frames come in turn from the queues of all interfaces and
//! go out by the first queue that the worker owns of theirs. What was transmitted is on its way after
//! [`Port::flush`]; while the kernel has not taken all of it, [`Port::wait`] returns after a millisecond so that the
//! worker flushes again. Nothing allocates after [`XdpPort::open`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{array, io};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use xvs_proto::LinkId;
use xvs_xdp::{BURST, Census, Frame, Sockets, Statistics, Unsent};

use super::{KernelDrops, Port, Received, Woken};
use crate::counters::Counter;
use crate::steering::reinject::Reinjector;

/// How many sockets one worker may have.
pub const MAX_SOCKETS: usize = 63;

/// One worker's port to the wire.
pub struct XdpPort {
    sockets: Sockets,
    /// By link.
    to_kernel: Vec<Arc<Reinjector>>,
    waker: Waker,
    unsent: Unsent,
    counters: Arc<[SocketCounters]>,
}

impl XdpPort {
    /// A port over these sockets; `to_kernel` has the way back for each of their links, in the same order.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the two do not fit each other or there are more than [`MAX_SOCKETS`] sockets;
    /// what the kernel says when it has no more descriptors.
    pub fn open(sockets: Sockets, to_kernel: Vec<Arc<Reinjector>>) -> io::Result<Self> {
        let fits = to_kernel.len() == sockets.links() && sockets.fds().count() <= MAX_SOCKETS;
        if !fits {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let counters =
            sockets.statistics().map(|(link, queue, _)| SocketCounters::new(link, queue)).collect();
        Ok(Self { sockets, to_kernel, waker: Waker(Arc::new(event)), unsent: Unsent::Nothing, counters })
    }

    /// What is known of each socket, for any thread.
    pub fn socket_counters(&self) -> Arc<[SocketCounters]> {
        self.counters.clone()
    }

    /// What ends this port's wait.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Has another port's waker end this one's waits, so that whoever has it need not hear of the new port.
    pub fn set_waker(&mut self, waker: Waker) {
        self.waker = waker;
    }

    /// How many frames are in TX rings and not known to be sent.
    pub fn unsent(&self) -> u64 {
        self.sockets.statistics().map(|(_, _, queue)| u64::from(queue.lent_to_transmit)).sum()
    }

    /// Its sockets, for their mode and statistics.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }
}

impl Port for XdpPort {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let room = BURST.saturating_sub(burst.len());
        self.sockets.receive(room, |link, frame| burst.push(Received { link, frame }));
    }

    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        self.sockets.transmit(link, frame)
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let Some(reinjector) = self.to_kernel.get(usize::from(link.0)) else { return Err(frame) };
        match reinjector.inject(frame.bytes()) {
            Ok(()) => {
                self.sockets.pool().put(frame);
                Ok(())
            }
            Err(_) => Err(frame),
        }
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.sockets.pool().take()
    }

    fn recycle(&mut self, frame: Frame) {
        self.sockets.pool().put(frame);
    }

    fn flush(&mut self) {
        self.unsent = self.sockets.flush();
    }

    fn wait(&mut self, at_most: Option<Duration>) -> Woken {
        let retry = Duration::from_millis(1);
        let at_most = match self.unsent {
            Unsent::Some => Some(at_most.map_or(retry, |limit| limit.min(retry))),
            Unsent::Nothing => at_most,
        };
        // One too long for the kernel is as good as none.
        let timeout = at_most.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = [const { None }; MAX_SOCKETS + 1];
        let waker = self.waker.0.as_fd();
        let mut count = 0;
        for (slot, fd) in fds.iter_mut().zip(std::iter::once(waker).chain(self.sockets.fds())) {
            *slot = Some(fd);
            count += 1;
        }
        let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd.unwrap_or(waker), PollFlags::IN));
        match poll(&mut polled[..count], timeout.as_ref()) {
            Ok(0) => Woken::TimedOut,
            Ok(_) => {
                if !polled[0].revents().is_empty() {
                    self.waker.clear();
                }
                Woken::Ready
            }
            // A signal; whoever waits looks for work and waits again.
            Err(_) => Woken::Ready,
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

/// What a worker last saw of one of its sockets: each time that it asks for the kernel's drops, about a second after
/// packets came. One writer, the worker.
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
        Self { link, queue, counts: array::from_fn(|_| Counter::default()), lent: Default::default() }
    }

    /// The socket of an interface that is gone has no counts any more: they stay as they were.
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

    /// As it was last seen.
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
        // They were as narrow when they were told.
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

/// Calls a worker out of [`Port::wait`], from any thread; a call before the wait ends that wait at once.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        // It fails only when the counter is at its limit: then the wait ends anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let mut count = [0; 8];
        // That nobody called meanwhile is no error.
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_socket_is_what_it_last_said_and_counts_never_go_down() {
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
