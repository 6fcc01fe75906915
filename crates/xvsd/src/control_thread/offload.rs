//! The offload of interfaces: enabled and disabled by the network, the settings and the losses.

use xvs_model::report::status::{BondMember, InterfaceOffload};
use xvs_proto::network::Network;

use super::{ControlThread, LOSSES_INTERVAL, is_due};
use crate::offload::Offloading;
use crate::workers::system::SystemDatapath;

impl ControlThread {
    /// Ends the offload to interfaces that refuse frames of the XDP program, and begins it on interfaces that accept
    /// them now.
    pub(super) fn follow_losses(&mut self) {
        if !is_due(&mut self.losses_after, LOSSES_INTERVAL) {
            return;
        }
        let datapath = self.control.datapath();
        datapath.follow_offload();
        if datapath.offload.as_ref().is_some_and(Offloading::is_ask_due) {
            datapath.ask_takers();
        }
        let Some(offload) = &mut datapath.offload else { return };
        let mut has_changed = offload.judge(&self.links);
        for (interface, ifindex) in self.shared.facts_mut().interfaces.iter_mut().zip(&self.links) {
            let now = status(self.control.datapath(), *ifindex, interface.bond.as_ref());
            let before = interface.offload.as_ref().map(|status| &status.why_not);
            has_changed |= before != now.as_ref().map(|status| &status.why_not);
            interface.offload = now;
        }
        if has_changed {
            self.update_network();
        }
    }
}

/// Enters the links on which the program may forward packets.
pub(super) fn enter(datapath: &mut SystemDatapath, network: &mut Network) {
    datapath.follow_offload();
    datapath.ask_takers();
    let Some(offload) = &datapath.offload else { return };
    for link in &mut network.links {
        if let Some(attached) = datapath.workers.attached(link.ifindex) {
            // The egress has the members of bonds.
            let part = offload.part_of(attached, None);
            (link.offloads, link.generic) = (part.offloads, part.generic);
            link.takes_redirected = part.takes_redirected;
        }
    }
}

/// The offload status of the interface with this index. `None`: there is no offload.
pub(super) fn status(
    datapath: &SystemDatapath,
    ifindex: u32,
    bond: Option<&BondMember>,
) -> Option<InterfaceOffload> {
    let offload = datapath.offload.as_ref()?;
    let attached = datapath.workers.attached(ifindex)?;
    Some(InterfaceOffload {
        why_not: offload.part_of(attached, bond).why_not,
        refused_packets: offload.lost(ifindex),
    })
}
