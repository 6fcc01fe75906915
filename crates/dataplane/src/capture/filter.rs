//! The filter of a capture, as an operator configures it.

use xvs_proto::{FlowKey, Prefix};
use xvs_sched::ServiceKey;

use crate::verdict::{DropReason, Verdict};

/// The conditions on a packet. A condition that is `None` matches all packets.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of the packet's addresses is in this network.
    pub address: Option<Prefix>,
    /// The packet's source or destination port.
    pub port: Option<u16>,
    /// The packet belongs to this service, or to a connection of the service.
    pub service: Option<ServiceKey>,
    /// The packet was received on the interface with this name.
    pub interface: Option<String>,
    /// The condition on its verdict.
    pub fate: Fate,
}

/// The condition on the verdict of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fate {
    /// Any verdict.
    #[default]
    Any,
    /// They were dropped.
    Dropped,
    /// They were dropped for this reason.
    DroppedFor(DropReason),
}

impl Fate {
    /// Whether a verdict meets the condition.
    pub(super) fn takes(self, verdict: Verdict) -> bool {
        match (self, verdict) {
            (Self::Any, _) => true,
            (Self::Dropped, Verdict::Drop(_)) => true,
            (Self::DroppedFor(wanted), Verdict::Drop(reason)) => wanted.index() == reason.index(),
            (Self::Dropped | Self::DroppedFor(_), _) => false,
        }
    }
}

/// Whether a packet is captured, as far as this is decided before its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    Wanted,
    /// Captured if the connection that it may begin passes the filter.
    Perhaps(FlowKey),
    Unwanted,
}
