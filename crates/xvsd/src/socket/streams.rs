//! Replies in several parts: connections, packets, events.
//!
//! The thread of the client sends the parts for as long as the client reads them, so a slow client delays only
//! itself.

use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use std::{io, mem};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use xvs_ctl::events::Listener;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::Reply;
use xvs_model::report::capture::CaptureRequest;
use xvs_model::report::connection::ConnectionRow;

use crate::socket::places::has_sent;
use crate::socket::{Client, Handler, Part, remaining, send};

impl Client {
    /// Sends packets until the client disconnects or sends another request.
    pub(super) fn stream_packets(&self, handler: &dyn Handler, wanted: &CaptureRequest) -> io::Result<()> {
        let (mut sent, mut begun) = (Ok(()), false);
        let ended = handler.capture(wanted, &self.peer, &mut |packets| {
            let pause = if packets.is_empty() { CAPTURE_PAUSE } else { Duration::ZERO };
            if !packets.is_empty() || !begun {
                begun = true;
                // A client may pause, for example while it shows a packet. This capture alone then misses packets.
                let idle = self.shared.settings.idle;
                sent = send(&self.stream, Ok(Reply::Captured(packets)), Part::MoreFollow, idle);
            }
            if sent.is_ok() && !has_sent(&self.stream, pause) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        sent?;
        self.send(ended.map(Reply::CaptureEnded), Part::Last)
    }

    /// Sends events until the client disconnects; if it does not follow events, until all were sent. Waits for a slow
    /// reader as long as for an idle client's next request; only this client loses the events that it misses in the
    /// meantime.
    pub(super) fn stream_events(&self, mut listener: Listener) -> io::Result<()> {
        let (mut until, mut has_begun) = (None, false);
        loop {
            match wait_writable(&self.stream, EVENT_TIMEOUT)? {
                Writable::Yes => until = None,
                Writable::NotYet => {
                    remaining(*until.get_or_insert_with(|| Instant::now() + self.shared.settings.idle))?;
                    continue;
                }
                Writable::Gone => return Ok(()),
            }
            let batch = listener.receive(match has_begun && listener.follows() {
                true => EVENT_TIMEOUT,
                false => Duration::ZERO,
            });
            match (batch.is_empty(), listener.follows()) {
                // The first part may be empty: it answers the request.
                (true, true) if has_begun => {}
                (true, false) => return self.send(Ok(Reply::Events(batch)), Part::Last),
                _ => self.send(Ok(Reply::Events(batch)), Part::MoreFollow)?,
            }
            has_begun = true;
        }
    }

    /// Sends the connections that `list` passes on.
    pub(super) fn stream(
        &self,
        list: impl FnOnce(&mut dyn FnMut(ConnectionRow) -> ControlFlow<()>) -> Result<(), CommandError>,
    ) -> io::Result<()> {
        let mut rows = Vec::with_capacity(PART_ROWS);
        let mut sent = Ok(());
        let listed = list(&mut |row| {
            rows.push(row);
            if rows.len() < PART_ROWS {
                return ControlFlow::Continue(());
            }
            let part = mem::replace(&mut rows, Vec::with_capacity(PART_ROWS));
            sent = self.send(Ok(Reply::Connections(part)), Part::MoreFollow);
            if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        sent?;
        self.send(listed.map(|()| Reply::Connections(rows)), Part::Last)
    }
}

/// Whether a part can be sent without waiting for the client.
enum Writable {
    Yes,
    NotYet,
    /// The client has disconnected.
    Gone,
}

/// Waits at most this long until the socket is writable.
fn wait_writable(stream: &UnixStream, within: Duration) -> io::Result<Writable> {
    let mut waiting = [PollFd::new(stream, PollFlags::OUT | PollFlags::RDHUP)];
    match poll(&mut waiting, Some(&Timespec::try_from(within).map_err(io::Error::other)?)) {
        Err(Errno::INTR) => return Ok(Writable::NotYet),
        done => done?,
    };
    let found = waiting[0].revents();
    Ok(if found.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
        Writable::Gone
    } else if found.contains(PollFlags::OUT) {
        Writable::Yes
    } else {
        Writable::NotYet
    })
}

/// The number of rows in one part of a listing: some 100 kB.
const PART_ROWS: usize = 512;

/// Interval of checking whether a client that waits for events is still connected.
const EVENT_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause of an idle capture between two checks for packets.
const CAPTURE_PAUSE: Duration = Duration::from_millis(5);
