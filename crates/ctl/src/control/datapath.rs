//! The datapath as the control plane uses it: the XDP program, the workers, the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::offload::Ends;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::lists::Lists;
use xvs_dataplane::snapshot::syn_limits::SynLimits;
use xvs_dataplane::snapshot::sync_backup::Inbox;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::steering::{SteeringError, SteeringRules};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_sched::ServiceKey;

/// The sockets of a daemon of connection synchronization.
#[derive(Debug, Clone, Copy)]
pub struct SyncSockets {
    /// The number of UDP ports, from the daemon's first on.
    pub ports: u16,
    /// The size of socket buffers; 0: the default.
    pub buffer_bytes: u32,
}

/// A worker that has not taken up a published change in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// The name, such as `worker 3`.
    pub worker: String,
}

/// The error for a client.
impl From<Late> for CommandError {
    fn from(late: Late) -> Self {
        Self::Late { who: late.worker }
    }
}

/// The XDP program, the workers and the kernel, apart from the published snapshot.
pub trait Datapath {
    /// Adds these rules to the steering.
    ///
    /// # Errors
    /// A map is full, or the kernel refuses; then the steering has not changed.
    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Removes these rules from the steering.
    ///
    /// # Errors
    /// As for [`Self::add_steering`].
    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Replaces the steering by these rules.
    ///
    /// # Errors
    /// As for [`Self::add_steering`].
    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Replaces the access lists of the XDP program, with the services of every port; `None`: there are no lists.
    ///
    /// # Errors
    /// The kernel refuses; then the program has no lists.
    fn set_lists(&mut self, lists: Option<(Arc<Lists>, Vec<ServiceKey>)>) -> Result<(), SteeringError>;

    /// Replaces the limits of SYNs of the XDP program.
    ///
    /// # Errors
    /// The kernel refuses; then workers decide where the program does not.
    fn set_syn_limits(&mut self, limits: &SynLimits) -> Result<(), SteeringError>;

    /// Adds the packets that the XDP program has dropped since the last call to the counts of the lists and of the
    /// limits of SYNs.
    fn count_drops(&mut self);

    /// The time of day.
    fn seconds_since_1970(&self, now: Millis) -> u64;

    /// Reads the date of events, in milliseconds since 1970.
    fn date_millis(&self) -> fn() -> u64 {
        || 0
    }

    /// Starts the master daemon of connection synchronization, which sends the connections that are announced from now
    /// on. The daemon reads settings and Call-IDs from the `published` snapshot.
    ///
    /// # Errors
    /// The daemon's sockets cannot be opened.
    fn start_master(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
        published: Arc<ArcSwap<Snapshot>>,
        now: Millis,
    ) -> Result<Arc<Announcements>, CommandError>;

    /// Stops the master daemon.
    fn stop_master(&mut self);

    /// Starts the backup daemon, which receives connections of other directors.
    ///
    /// # Errors
    /// The daemon's sockets cannot be opened.
    fn start_backup(&mut self, daemon: &SyncDaemon, sockets: SyncSockets)
    -> Result<Arc<Inbox>, CommandError>;

    /// Stops the backup daemon.
    fn stop_backup(&mut self);

    /// Waits until every worker uses the snapshot that was published before the call.
    ///
    /// # Errors
    /// A thread is late after `patience`.
    fn await_workers(&mut self, patience: Duration) -> Result<(), Late>;

    /// Ends these offloaded flows: workers process the next packets of the flows.
    fn end_offload(&mut self, ends: &Ends);

    /// Makes the kernel keep these neighbours resolved, and no others. Each has the kernel's index of its link.
    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>);

    /// Replaces the port ranges, first and last, that the kernel does not use for its own connections.
    fn reserve_ports(&mut self, ports: &[(u16, u16)]);

    /// The machine's available pages of memory; `None`: unknown, which does not count as short memory.
    fn available_pages(&mut self) -> Option<u32>;

    /// The number of free entries of the connection table, and the size of the table.
    fn free_entries(&self) -> (usize, usize);
}
