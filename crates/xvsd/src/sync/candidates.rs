//! Connections to the sender of tables that have not begun their handshake.
//!
//! Any machine on the network may connect and send nothing. The sender therefore serves a connection only once its
//! first message has arrived; until then it takes a slot, for a short time.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::channel::FIRST_MESSAGE;

/// The connections, the oldest first.
#[derive(Default)]
pub(super) struct Candidates(Vec<Candidate>);

struct Candidate {
    stream: TcpStream,
    from: IpAddr,
    since: Instant,
}

impl Candidates {
    /// Waits for a short time for a connection whose first message has arrived. Closes late ones.
    pub(super) fn next(&mut self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        let mut all: Vec<_> = self
            .0
            .iter()
            .map(|one| one.stream.as_fd())
            .chain([listener.as_fd()])
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let _ = poll(&mut all, Some(if self.0.is_empty() { &TURN } else { &SHORT_TURN }));
        while let Ok((stream, from)) = listener.accept() {
            self.add(stream, from.ip(), Instant::now());
        }
        let now = Instant::now();
        self.0.retain(|one| now.saturating_duration_since(one.since) < LATE);
        let begun = self.0.iter().position(|one| has_begun(&one.stream))?;
        let Candidate { stream, from, .. } = self.0.remove(begun);
        Some((stream, SocketAddr::new(from, 0)))
    }

    /// Adds a connection. Without a free slot it displaces the oldest one from its address, or the oldest of all.
    fn add(&mut self, stream: TcpStream, from: IpAddr, since: Instant) {
        // A failure becomes apparent at the first call.
        let _ = stream.set_nonblocking(true);
        let displaced = match self.0.iter().filter(|one| one.from == from).count() {
            PER_ADDRESS.. => self.0.iter().position(|one| one.from == from),
            _ => (self.0.len() >= ALL).then_some(0),
        };
        if let Some(index) = displaced {
            self.0.remove(index);
        }
        self.0.push(Candidate { stream, from, since });
    }
}

/// Whether the first message of the handshake is there, or the connection has ended.
fn has_begun(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0; FIRST_MESSAGE]) {
        Ok(bytes) => bytes == 0 || bytes >= FIRST_MESSAGE,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// The time that the first message may take.
const LATE: Duration = Duration::from_millis(500);
/// The maximum number of connections that wait for their first message: of all addresses, and of one address.
const ALL: usize = 64;
const PER_ADDRESS: usize = 4;
/// The time that the thread waits before it checks whether to stop.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How long it waits while there are connections.
const SHORT_TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
