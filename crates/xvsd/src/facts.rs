//! Facts that no counter has: interfaces, workers, settings, warnings.
//!
//! Written by the thread that starts the daemon, then by the control thread. Readers get a copy.

use std::path::PathBuf;
use std::sync::Arc;

use xvs_ctl::unattached::Attachment;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::port::xdp::SocketCounters;
use xvs_host::network::card::CardLosses;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::objects::disabled::DisabledServers;
use xvs_model::report::setting::Setting;
use xvs_model::report::status::{InterfaceStatus, KernelStatus, LinkState};
use xvs_model::report::warning::Warning;
use xvs_proto::network::Network;
use xvs_xdp::polling::Poll;

/// The facts of `xvs status` that no counter has.
#[derive(Clone, Default)]
pub struct Facts {
    /// The interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The losses of each interface's card since it was attached.
    pub card_losses: Vec<CardLosses>,
    /// The machine's network, with the interfaces that are not attached.
    pub network: Arc<Network>,
    /// The workers.
    pub workers: Vec<WorkerFacts>,
    /// The warnings of the control thread.
    pub warnings: Vec<Warning>,
    /// The warnings of the start, which stay: about workers that found no queue, and a table beyond the memory limit.
    pub start_warnings: Vec<Warning>,
    /// The rules file that the daemon started with.
    pub rules: Option<PathBuf>,
    /// When the journal with which the daemon began was last written, in milliseconds since 1970; `None` if it began
    /// with its files.
    pub journal_saved_at_millis: Option<u64>,
    /// Commands, as typed, that undo manual changes to owned services.
    pub drift: Arc<[String]>,
    /// The disabled real servers.
    pub disabled: DisabledServers,
    /// The running daemons of connection synchronization.
    pub daemons: Vec<SyncDaemon>,
    /// The settings in force.
    pub settings: Arc<[Setting]>,
    /// What is followed of the kernel's IPVS; `None` if nothing is.
    pub kernel: Option<KernelStatus>,
    /// Time until which applied rules can be confirmed; `None` if none wait.
    pub unconfirmed_until: Option<Millis>,
}

impl Facts {
    /// The machine's interfaces, attached and not.
    pub fn attachment(&self) -> Attachment<'_> {
        Attachment::new(&self.network, self.interfaces.iter().map(|interface| interface.name.as_str()))
    }
}

/// The placement and sockets of a worker.
#[derive(Clone)]
pub struct WorkerFacts {
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// Whether the kernel copies its frames, and because of which interface.
    pub copy_mode: String,
    /// How it waits for packets.
    pub poll: Poll,
    /// The worker's share of each interface's queues, in the interfaces' order.
    pub queues: Vec<Vec<u32>>,
    /// The counters of its sockets.
    pub sockets: Arc<[SocketCounters]>,
}

/// The state of the link with this index.
pub(crate) fn link_state(network: &Network, ifindex: u32) -> LinkState {
    match network.links.iter().find(|link| link.ifindex == ifindex) {
        Some(link) if link.up => LinkState::Up,
        Some(_) => LinkState::Down,
        None => LinkState::Gone,
    }
}

#[cfg(test)]
mod tests {
    use crate::facts::*;

    #[test]
    fn a_link_is_up_down_or_gone() {
        let mut network = Network::default();
        network.add_link("wan", "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        let ifindex = network.links[0].ifindex;
        assert_eq!(link_state(&network, ifindex), LinkState::Up);
        network.links[0].up = false;
        assert_eq!(link_state(&network, ifindex), LinkState::Down);
        network.links.clear();
        assert_eq!(link_state(&network, ifindex), LinkState::Gone);
    }
}
