//! Replies in many parts: connections, packets, events.
//!
//! Each is sent by the client's own thread for as long as the client takes it, so a slow one costs only itself.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use xvs_model::capture::CaptureRequest;
use xvs_model::command::CommandError;
use xvs_model::connection::ConnectionRow;
use xvs_model::reply::Reply;

use crate::api::server::{Client, Handler, Part, Peer, send};
use crate::events::Listener;

impl Client {
    /// Sends packets until the client hangs up or asks for something else.
    pub(super) fn stream_packets(
        &self,
        handler: &dyn Handler,
        wanted: &CaptureRequest,
        peer: &Peer,
    ) -> io::Result<()> {
        let (mut sent, mut begun) = (Ok(()), false);
        let ended = handler.capture(wanted, peer, &mut |packets| {
            let pause = if packets.is_empty() { CAPTURE_PAUSE } else { Duration::ZERO };
            if !packets.is_empty() || !begun {
                begun = true;
                // Who reads them may be looking at what he has; his packets are missed meanwhile, nobody else's.
                let part = Ok(Reply::Captured(packets));
                sent = send(&self.stream, part, Part::MoreFollow, self.shared.settings.idle);
            }
            match sent.is_ok() && !is_readable(&self.stream, pause) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        sent?;
        self.send(ended.map(Reply::CaptureEnded), Part::Last)
    }

    /// Tells of events until the client goes, or until there are no more if he does not follow them. One that reads
    /// slowly is waited for: what it misses meanwhile is its own loss.
    pub(super) fn stream_events(&self, mut listener: Listener) -> io::Result<()> {
        let timeout = if listener.follows() { EVENT_TIMEOUT } else { Duration::ZERO };
        loop {
            match wait_writable(&self.stream, EVENT_TIMEOUT)? {
                Writable::Yes => {}
                Writable::NotYet => continue,
                Writable::Gone => return Ok(()),
            }
            let batch = listener.receive(timeout);
            match (batch.is_empty(), listener.follows()) {
                (true, true) => {}
                (true, false) => return self.send(Ok(Reply::Events(batch)), Part::Last),
                (false, _) => self.send(Ok(Reply::Events(batch)), Part::MoreFollow)?,
            }
        }
    }

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
            let part = std::mem::replace(&mut rows, Vec::with_capacity(PART_ROWS));
            sent = self.send(Ok(Reply::Connections(part)), Part::MoreFollow);
            if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        sent?;
        self.send(listed.map(|()| Reply::Connections(rows)), Part::Last)
    }
}

/// Whether a message can be sent without waiting for the other end.
enum Writable {
    Yes,
    NotYet,
    /// There is no other end any more.
    Gone,
}

/// Waits so long for room.
fn wait_writable(stream: &UnixStream, within: Duration) -> io::Result<Writable> {
    let within = Timespec::try_from(within).map_err(io::Error::other)?;
    let mut looked = [PollFd::new(stream, PollFlags::OUT | PollFlags::RDHUP)];
    match poll(&mut looked, Some(&within)) {
        Err(Errno::INTR) => return Ok(Writable::NotYet),
        done => done?,
    };
    let found = looked[0].revents();
    Ok(if found.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
        Writable::Gone
    } else if found.contains(PollFlags::OUT) {
        Writable::Yes
    } else {
        Writable::NotYet
    })
}

/// Whether the client has said something or hung up, at once or within this time.
fn is_readable(stream: &UnixStream, within: Duration) -> bool {
    let timeout = Timespec::try_from(within).ok();
    let mut polled = [PollFd::new(stream, PollFlags::IN)];
    // After a signal it is asked again.
    poll(&mut polled, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

/// Connections in one part of a listing: some 100 kB.
const PART_ROWS: usize = 512;

/// Between two looks whether a listener to events is still there.
const EVENT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a capture without packets waits before it looks again.
const CAPTURE_PAUSE: Duration = Duration::from_millis(5);
