//! Packets that this machine itself sends: if they belong to connections of services, they are redirected to workers.
//!
//! A program on the egress of an interface (`bpf/own.bpf.c`) redirects them to the interface's TAP, from which a worker
//! reads them ([`Reinjector::read`]). It is attached to interfaces while an endpoint of this machine is a NAT real
//! server, and to `lo` while an address of this machine has a service whose real servers are masqueraded. The packets
//! leave as if there were no program when the TAP is gone, because the process has ended, or while the process hangs
//! for longer than the hold. The next process replaces the program. Runs on the control thread.

use std::io;
use std::sync::Arc;

use xvs_helper::task::Task;
use xvs_xdp::bpf::{AttachTc, DetachTc, Direction, attached_tc};

use super::objects::Load;
use super::reinject::Reinjector;
use super::{OwnSender, Steering};

/// The redirection of packets that this machine sends on one interface. It ends when this value is dropped.
pub struct Redirection {
    interface: u32,
    program: u32,
    reinjector: Arc<Reinjector>,
}

impl Redirection {
    /// Redirects packets from this sender that leave on the interface of this reinjector to its TAP. The interface has
    /// the qdisc `clsact`.
    ///
    /// # Errors
    ///
    /// The kernel's error; nothing is attached.
    pub fn begin(steering: &Steering, sender: OwnSender, reinjector: Arc<Reinjector>) -> io::Result<Self> {
        let object = Load::Own(reinjector.tap_index()).object(Some(&steering.object))?;
        let interface = reinjector.interface();
        let name = match sender {
            OwnSender::Server => c"from_server",
            OwnSender::Client => c"from_client",
        };
        // Frames that were sent after the last redirection ended are too old by now.
        reinjector.drain();
        // Before the first frame: a worker is notified of it once.
        reinjector.set_read(true);
        let (program, _) = object
            .program(name)
            .and_then(|program| AttachTc { interface, direction: Direction::Egress }.run(&[program]))
            .inspect_err(|_| reinjector.set_read(false))?;
        Ok(Self { interface, program, reinjector })
    }

    /// Whether the program is still attached: no process has removed or replaced it.
    pub fn is_in_force(&self) -> bool {
        attached_tc(self.interface, Direction::Egress).is_ok_and(|program| program == self.program)
    }
}

impl Drop for Redirection {
    fn drop(&mut self) {
        // It fails if the interface is gone, and the program with it.
        let Self { interface, program, .. } = *self;
        let _ = DetachTc { program, interface, direction: Direction::Egress }.run(&[]);
        self.reinjector.set_read(false);
    }
}
