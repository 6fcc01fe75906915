//! The offload of connections, by interface: what the network, the settings and the losses allow.

use std::time::{Duration, Instant};

use xvs_model::report::status::{BondMember, InterfaceOffload};
use xvs_proto::network::Network;

use super::ControlThread;
use crate::workers::system::SystemDatapath;

/// The time between two looks at what interfaces refuse.
const LOSSES_INTERVAL: Duration = Duration::from_secs(1);

impl ControlThread {
    /// Ends the offload to interfaces that refuse what the program forwards, and begins it by those that take it now.
    pub(super) fn follow_losses(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.losses_at) < LOSSES_INTERVAL {
            return;
        }
        self.losses_at = now;
        let Some(offload) = self.control.datapath().offloading() else { return };
        let mut has_changed = offload.judge(&self.links);
        for (interface, ifindex) in self.shared.facts_mut().interfaces.iter_mut().zip(&self.links) {
            let now = status(self.control.datapath(), *ifindex, interface.bond.as_ref());
            let why_not =
                |status: &Option<InterfaceOffload>| status.as_ref().map(|status| status.why_not.clone());
            has_changed |= why_not(&interface.offload) != why_not(&now);
            interface.offload = now;
        }
        if has_changed {
            self.update_network();
        }
    }
}

/// Enters by which links packets may be forwarded.
pub(super) fn enter(datapath: &mut SystemDatapath, network: &mut Network) {
    let is_on = datapath.follow_offload();
    for link in &mut network.links {
        if let Some(offload) = datapath.offload_of(link.ifindex).filter(|_| is_on) {
            (link.offloads, link.generic) = (true, offload.generic);
            link.takes_redirected = offload.refuses.is_none();
        }
    }
}

/// How the interface of this index takes part.
pub(super) fn status(
    datapath: &mut SystemDatapath,
    ifindex: u32,
    bond: Option<&BondMember>,
) -> Option<InterfaceOffload> {
    let is_on = datapath.follow_offload();
    datapath.offload_of(ifindex).map(|offload| InterfaceOffload {
        why_not: match (is_on, bond) {
            (false, _) => Some("the kernel does not copy its packets, so workers are fast; offload = \"on\" offloads all the same".to_owned()),
            (true, Some(bond)) => Some(format!("it is a member of {}", bond.name)),
            (true, None) => offload.refuses,
        },
        refused_packets: offload.lost,
    })
}
