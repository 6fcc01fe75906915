//! The slots for clients of the control socket, and the client that loses its slot if all are taken.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xvs_model::protocol::request::Access;

use crate::socket::Settings;
use crate::socket::peer::Peer;

/// The clients that are served.
#[derive(Debug, Default)]
pub(super) struct Clients {
    pub(super) next: u64,
    pub(super) served: HashMap<u64, Served>,
    pub(super) stopping: bool,
}

/// A connected client.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) stream: UnixStream,
    pub(super) peer: Peer,
    /// When the client connected or sent its last request, if the server waits for the next one; `None` if a request
    /// arrives or is carried out.
    pub(super) idle_since: Option<Instant>,
    /// Whether the client has ever begun a request.
    pub(super) has_asked: bool,
}

impl Served {
    /// Whether the client has sent nothing since it connected, at least [`SILENT`] ago.
    fn is_silent(&self, now: Instant) -> bool {
        !self.has_asked
            && self.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= SILENT)
            && !has_sent(&self.stream, Duration::ZERO)
    }
}

impl Clients {
    /// Whether another client may connect: those that may only read never take all slots.
    pub(super) fn have_room_for(&self, peer: &Peer, settings: &Settings) -> bool {
        let room = self.served.len() < settings.clients;
        match peer.access {
            Access::Change => room,
            Access::Read => {
                room && self.readers().count() < settings.readers
                    && self.readers().filter(|other| other.peer.uid == peer.uid).count()
                        < settings.readers_per_user
            }
        }
    }

    fn readers(&self) -> impl Iterator<Item = &Served> {
        self.served.values().filter(|other| other.peer.access == Access::Read)
    }

    /// Disconnects the client that has been idle for the longest time, at least [`FORGOTTEN`], in favour of `peer`; or
    /// a silent one, if the peer's request has arrived. Returns whether there was one. Clients that may only read take
    /// no other client's slot.
    pub(super) fn replace_idle(&mut self, peer: &Peer, now: Instant, has_request: bool) -> bool {
        if peer.access != Access::Change {
            return false;
        }
        let idle = self.served.iter().filter_map(|(number, served)| {
            let since = served.idle_since?;
            let is_forgotten = now.saturating_duration_since(since) >= FORGOTTEN;
            (is_forgotten || has_request && served.is_silent(now)).then_some((since, *number))
        });
        let Some((_, number)) = idle.min() else { return false };
        if let Some(served) = self.served.remove(&number) {
            // An error means that the client has disconnected already.
            let _ = served.stream.shutdown(Shutdown::Both);
        }
        true
    }
}

/// Whether a client has sent data that are not read yet, or has disconnected, or does so within this time.
pub(super) fn has_sent(stream: &UnixStream, within: Duration) -> bool {
    let time = Timespec { tv_sec: 0, tv_nsec: within.subsec_nanos().into() };
    // Interrupted by a signal: the next call finds out.
    poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
}

/// The time that a client must have been idle before another one gets its slot.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// The time that a client may be silent after it has connected, before one whose request has arrived gets its slot.
const SILENT: Duration = Duration::from_millis(50);
