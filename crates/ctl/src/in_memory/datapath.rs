//! The datapath of the director in memory: it records the control plane's requests.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::Table;
use xvs_dataplane::offload::Ends;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::lists::Lists;
use xvs_dataplane::snapshot::syn_limits::SynLimits;
use xvs_dataplane::snapshot::sync_backup::{Inbox, Trust};
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::steering::{SteeringError, SteeringRules};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_proto::HashSecret;
use xvs_sched::ServiceKey;

use crate::control::datapath::{Datapath, Late, SyncSockets};
use crate::sync::messages::Messages;
use crate::sync::receiver::Receiver;

/// Capacity of the connection table.
pub(super) const TABLE_SIZE: usize = 1 << 16;

/// The datapath of a director in memory: it records the steering, and has no workers to wait for.
#[derive(Default)]
pub struct MemoryDatapath {
    pub(super) rules: SteeringRules,
    /// How many publications waited for workers.
    pub(super) publications: u64,
    /// The connection table, if there is one.
    pub(super) table: Option<Arc<Table>>,
    /// The master daemon and its messages, while one runs.
    pub(super) master: Option<(SyncDaemon, Messages)>,
    /// The backup daemon, while one runs.
    pub(super) backup: Option<Receiver>,
    /// The program that forwards offloaded flows; `None` if the pipeline processes all frames.
    pub(super) program: Option<Box<dyn Program>>,
}

/// An XDP program that forwards offloaded flows, for tests: the director itself needs no rights.
pub trait Program: Send {
    /// Steers exactly this traffic; the program forwards nothing else.
    fn steer(&mut self, rules: &SteeringRules);

    /// Forwards a frame at this time. Returns the kernel's index of the outgoing interface, and the frame as it leaves.
    /// `None`: the frame goes to the pipeline.
    fn forward(&mut self, frame: &[u8], now: Millis) -> Option<(u32, Vec<u8>)>;

    /// Ends these flows.
    fn end(&mut self, ends: &Ends);
}

impl MemoryDatapath {
    /// Passes the steered traffic to the program.
    pub(super) fn steer(&mut self) {
        if let Some(program) = &mut self.program {
            program.steer(&self.rules);
        }
    }
}

impl Datapath for MemoryDatapath {
    fn start_master(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
        _: Arc<ArcSwap<Snapshot>>,
        now: Millis,
    ) -> Result<Arc<Announcements>, CommandError> {
        let entries = self.table.as_ref().map_or(0, |table| table.entries());
        let announcements = Arc::new(Announcements::new(entries, 1));
        let reader = self.table.as_ref().and_then(Table::reader);
        self.master = reader.map(|reader| {
            (daemon.clone(), Messages::new(daemon, sockets.ports, announcements.clone(), reader, now))
        });
        Ok(announcements)
    }

    fn stop_master(&mut self) {
        self.master = None;
    }

    /// The messages are trusted, as in a kernel.
    fn start_backup(&mut self, daemon: &SyncDaemon, _: SyncSockets) -> Result<Arc<Inbox>, CommandError> {
        let inbox = Arc::new(Inbox::new(1, Trust::Signed));
        self.backup = Some(Receiver { daemon: daemon.clone(), inbox: inbox.clone(), secret: SECRET });
        Ok(inbox)
    }

    fn stop_backup(&mut self) {
        self.backup = None;
    }

    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.rules.add(rules);
        self.steer();
        Ok(())
    }

    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.rules.subtract(rules);
        self.steer();
        Ok(())
    }

    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.rules.clone_from(rules);
        self.steer();
        Ok(())
    }

    /// Workers check each packet.
    fn set_lists(&mut self, _: Option<(Arc<Lists>, Vec<ServiceKey>)>) -> Result<(), SteeringError> {
        Ok(())
    }

    /// Workers decide on each SYN.
    fn set_syn_limits(&mut self, _: &SynLimits) -> Result<(), SteeringError> {
        Ok(())
    }

    fn count_drops(&mut self) {}

    /// The time begins in 1970.
    fn seconds_since_1970(&self, now: Millis) -> u64 {
        now.0 / 1000
    }

    fn await_workers(&mut self, _: Duration) -> Result<(), Late> {
        self.publications += 1;
        Ok(())
    }

    fn end_offload(&mut self, ends: &Ends) {
        if let Some(program) = &mut self.program {
            program.end(ends);
        }
    }

    fn keep_resolved(&mut self, _: &BTreeSet<(u32, IpAddr)>) {}

    fn reserve_ports(&mut self, _: &[(u16, u16)]) {}

    /// Memory is never short.
    fn available_pages(&mut self) -> Option<u32> {
        None
    }

    /// The table is never short of entries.
    fn free_entries(&self) -> (usize, usize) {
        (TABLE_SIZE, TABLE_SIZE)
    }
}

/// The secret of the table's hash.
pub(super) const SECRET: HashSecret =
    HashSecret([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d]);
