//! The filter of a capture, as an operator configures it.
//!
//! Not here: how a packet is compared with it (`judge.rs`).

use xvs_proto::{FlowKey, Prefix};
use xvs_sched::ServiceKey;

use crate::verdict::{DropReason, Verdict};

/// The conditions for a packet. A condition that is `None` holds for all packets.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of its addresses is in this network.
    pub address: Option<Prefix>,
    /// One of its ports is this one.
    pub port: Option<u16>,
    /// It belongs to this service, or to a connection of the service.
    pub service: Option<ServiceKey>,
    /// It was received by the interface of this name.
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

/// Whether a packet is captured, as far as it is known before its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    Wanted,
    /// Captured if the connection that it may begin passes the filter.
    Perhaps(FlowKey),
    Unwanted,
}
