//! `xvs capture` in the daemon: the capture's slots, its publication, and the packets for the client.
//!
//! Runs on the thread of the client for as long as the capture is on. Creates the slots, has the control thread publish
//! the capture, and passes on the packets that workers have copied. When the client disconnects, the capture is removed
//! from the snapshot. Bounded: [`MOST`] captures at a time, `SLOTS` for each worker.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use xvs_ctl::api::capture::Listener;
use xvs_dataplane::capture::{Capture, MOST};
use xvs_dataplane::egress::Egress;
use xvs_model::config::refusal::CommandError;
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, Missed};

use crate::handle::Handle;
use crate::lock::lock;
use crate::shared::Shared;
use crate::socket::Peer;

/// Slots of each worker: packets that may wait to be read.
const SLOTS: usize = 1024;

/// The captures that are on.
#[derive(Default)]
pub(crate) struct ActiveCaptures(Mutex<Vec<Arc<Capture>>>);

impl ActiveCaptures {
    /// Captures until `each` breaks. Calls `each` as soon as the capture is on, and then repeatedly with the packets
    /// copied since, which may be none.
    ///
    /// # Errors
    /// The reason why the request is refused; or [`MOST`] captures are on.
    pub(crate) fn run(
        &self,
        wanted: &CaptureRequest,
        daemon: &Handle,
        peer: &Peer,
        each: &mut dyn FnMut(Vec<CapturedPacket>) -> ControlFlow<()>,
    ) -> Result<Missed, CommandError> {
        let shared = daemon.shared();
        let (mut listener, active) = self.begin(wanted, daemon)?;
        // Packets contain data of clients and servers, so the log names the user who captures them.
        tracing::info!("uid {}: packet capture begins", peer.uid);
        while each(listener.packets(&egress(shared))).is_continue() {}
        active.end();
        // The remaining packets. The capture has ended, so the result is not needed.
        let _ = each(listener.packets(&egress(shared)));
        Ok(listener.missed(&egress(shared)))
    }

    fn begin<'a>(
        &'a self,
        wanted: &CaptureRequest,
        daemon: &'a Handle,
    ) -> Result<(Listener, ActiveCapture<'a>), CommandError> {
        let mut list = lock(&self.0);
        if list.len() >= MOST {
            return Err(CommandError::failed(format_args!(
                "{MOST} captures are running, the maximum; end one"
            )));
        }
        // The slots are allocated here, so that refused requests cost no memory.
        let shared = daemon.shared();
        let listener = Listener::new(wanted, shared.workers().len(), SLOTS, &egress(shared))?;
        let capture = listener.capture();
        list.push(capture.clone());
        let published = publish(daemon, &list);
        drop(list);
        let active = ActiveCapture { capture, all: self, daemon };
        published.map(|()| (listener, active))
    }
}

/// Replaces the captures that are on, and waits until they are published.
fn publish(daemon: &Handle, captures: &[Arc<Capture>]) -> Result<(), CommandError> {
    let captures = captures.into();
    daemon.run(move |thread| Ok(thread.control.set_captures(captures)?))
}

fn egress(shared: &Shared) -> Arc<Egress> {
    shared.published.load().egress.clone()
}

/// A capture that is on; dropping it ends it.
struct ActiveCapture<'a> {
    capture: Arc<Capture>,
    all: &'a ActiveCaptures,
    daemon: &'a Handle,
}

impl ActiveCapture<'_> {
    /// Removes the capture; from then on no worker copies for it.
    fn end(&self) {
        let mut list = lock(&self.all.0);
        let before = list.len();
        list.retain(|other| !Arc::ptr_eq(other, &self.capture));
        if list.len() < before {
            // An error means that the daemon ends, and with it all captures; or a worker is late, and copies into
            // slots that are no longer read.
            let _ = publish(self.daemon, &list);
        }
    }
}

impl Drop for ActiveCapture<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
