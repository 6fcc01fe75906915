//! The sleep of a worker: the frames and the threads that wake it.
//!
//! One epoll object contains the sockets, the TAPs and the waker of a port. It is edge-triggered because each query of
//! an AF_XDP socket (`xsk_poll`, net/xdp/xsk.c) wakes the driver as long as one of the socket's need-wakeup flags is
//! set, and drivers set the flag of their TX ring whenever they have nothing to send: in zero-copy mode an interrupt of
//! the card. `poll` queries every socket before a sleep and after it; the epoll object queries only sockets that have
//! received frames, once. The caller therefore waits only after it has found no frame. Used for each sleep; nothing is
//! allocated.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// The event sources of a port.
#[derive(Debug)]
pub(super) struct Waiting(OwnedFd);

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    /// The time.
    Nothing,
    /// Frames of sockets, or a call of the waker.
    Something,
    /// Like `Something`, and a TAP may have frames.
    Own,
}

impl Waiting {
    /// Creates a wait for these sockets and this waker.
    ///
    /// # Errors
    ///
    /// The kernel has no more descriptors.
    pub(super) fn open<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>, waker: &Waker) -> io::Result<Self> {
        let waiting = Self(epoll::create(CreateFlags::CLOEXEC)?);
        waiting.add(waker.0.as_fd(), SOCKET)?;
        for socket in sockets {
            waiting.add(socket, SOCKET)?;
        }
        Ok(waiting)
    }

    /// Waits for this TAP, too.
    ///
    /// # Errors
    /// The kernel has no more memory.
    pub(super) fn add_tap(&self, tap: BorrowedFd<'_>) -> io::Result<()> {
        self.add(tap, TAP)
    }

    fn add(&self, fd: BorrowedFd<'_>, kind: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(kind), EventFlags::IN | EventFlags::ET)?)
    }

    /// Waits until something has arrived since the last wait, in steps of a millisecond.
    pub(super) fn wait(&self, at_most: Option<Duration>) -> Arrived {
        let limit = at_most.and_then(|limit| Timespec::try_from(limit.min(LONGEST)).ok());
        // The next wait reports events for which there is no room.
        let mut events = [const { MaybeUninit::<Event>::uninit() }; 64];
        match epoll::wait(&self.0, &mut events, limit.as_ref()) {
            Ok(([], _)) => Arrived::Nothing,
            Ok((events, _)) if events.iter().any(|event| event.data.u64() == TAP) => Arrived::Own,
            // A signal: the worker looks for work and waits again.
            Ok(_) | Err(_) => Arrived::Something,
        }
    }
}

/// Wakes a worker from its wait, from any thread. A call before the wait ends that wait at once.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker for consecutive ports.
    ///
    /// # Errors
    /// The kernel has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        // No thread reads the counter: each addition is an event. It cannot reach its limit of 2⁶⁴ - 2.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// The data of events.
const SOCKET: u64 = 0;
const TAP: u64 = 1;

/// `epoll_wait` takes milliseconds in 31 bits.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(1));

    #[test]
    fn a_call_of_the_waker_ends_one_wait_also_if_it_came_before() {
        let waker = Waker::new().unwrap();
        let waiting = Waiting::open(std::iter::empty(), &waker).unwrap();
        assert_eq!(waiting.wait(SHORT), Arrived::Nothing);
        for _ in 0..3 {
            waker.wake();
            waker.wake();
            assert_eq!(waiting.wait(None), Arrived::Something);
            assert_eq!(waiting.wait(SHORT), Arrived::Nothing);
        }
        waker.wake();
        let next = Waiting::open(std::iter::empty(), &waker).unwrap();
        assert_eq!(next.wait(None), Arrived::Something, "the next port of the worker does not miss it");
    }

    #[test]
    fn a_wait_lasts_at_least_its_time_and_a_tap_is_told_from_a_socket() {
        let waker = Waker::new().unwrap();
        let (tap, socket) = (Waker::new().unwrap(), Waker::new().unwrap());
        let waiting = Waiting::open([socket.0.as_fd()].into_iter(), &waker).unwrap();
        waiting.add_tap(tap.0.as_fd()).unwrap();
        let begun = Instant::now();
        assert_eq!(waiting.wait(Some(Duration::from_micros(1500))), Arrived::Nothing);
        assert!(begun.elapsed() >= Duration::from_micros(1500));
        socket.wake();
        assert_eq!(waiting.wait(None), Arrived::Something);
        tap.wake();
        socket.wake();
        assert_eq!(waiting.wait(None), Arrived::Own);
    }
}
