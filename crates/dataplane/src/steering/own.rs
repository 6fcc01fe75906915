//! Packets that this machine itself sends: those of connections of services are redirected to workers.
//!
//! A program on the egress of an interface (`bpf/own.bpf.c`) redirects them to the interface's TAP, from which a
//! worker reads them ([`Reinjector::read`]). It is attached to interfaces while an endpoint of this machine is a real
//! server behind NAT, and to `lo` while an address of this machine has a service whose real servers are masqueraded.
//! When the TAP is gone, because the process has ended, or while it hangs for longer than the hold, the packets leave
//! as if there were no program; the next process replaces it. Runs on the control thread.

use std::ffi::CStr;
use std::io;
use std::sync::Arc;

use xvs_xdp::bpf::{Direction, Object, attach_tc, attached_tc, detach_tc};

use super::reinject::Reinjector;
use super::{OwnSender, Steering};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/own.bpf.o"));
/// The maps that it shares with the steering program.
const SHARED: [&CStr; 4] = [c"endpoints", c"addresses", c"clients", c"hold"];

/// The redirection of packets that this machine sends by one interface. It ends when this is dropped.
pub struct Redirection {
    interface: u32,
    program: u32,
    reinjector: Arc<Reinjector>,
}

impl Redirection {
    /// Redirects packets of this sender that leave by the interface of this reinjector to its TAP. The interface has
    /// the qdisc `clsact`.
    ///
    /// # Errors
    /// The kernel's error; nothing is attached.
    pub fn begin(steering: &Steering, sender: OwnSender, reinjector: Arc<Reinjector>) -> io::Result<Self> {
        let mut object = Object::open(OBJECT)?;
        object.set_constants(&reinjector.tap_index().to_ne_bytes())?;
        for map in SHARED {
            object.share(map, steering.object())?;
        }
        object.load()?;
        let interface = reinjector.interface();
        let program = match sender {
            OwnSender::Server => c"from_server",
            OwnSender::Client => c"from_client",
        };
        // What was sent after the last redirection ended is too old by now.
        reinjector.drain();
        let program = attach_tc(object.program(program)?, interface, Direction::Egress)?;
        reinjector.set_read(true);
        Ok(Self { interface, program, reinjector })
    }

    /// Whether the program is still there: nobody has removed or replaced it.
    pub fn is_in_force(&self) -> bool {
        attached_tc(self.interface, Direction::Egress).is_ok_and(|program| program == self.program)
    }
}

impl Drop for Redirection {
    fn drop(&mut self) {
        // It fails if the interface is gone, and the program with it.
        let _ = detach_tc(self.program, self.interface, Direction::Egress);
        self.reinjector.set_read(false);
    }
}
