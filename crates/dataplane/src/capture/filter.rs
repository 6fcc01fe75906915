//! Which packets are captured, as an operator says it.
//!
//! Not here: how a packet is judged (`judge.rs`).

use xvs_proto::{FlowKey, Prefix};
use xvs_sched::ServiceKey;

use crate::verdict::{DropReason, Verdict};

/// What has to hold for a packet; what is `None` holds for all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of the ends is in this network.
    pub address: Option<Prefix>,
    /// One of the ends has this port.
    pub port: Option<u16>,
    /// It is of this service, or of a connection of it.
    pub service: Option<ServiceKey>,
    /// It came in by the interface of this name.
    pub interface: Option<String>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of packets that are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fate {
    /// Anything.
    #[default]
    Any,
    /// They were dropped.
    Dropped,
    /// They were dropped for this reason.
    DroppedFor(DropReason),
}

impl Fate {
    /// Whether a verdict is wanted.
    pub(super) fn takes(self, verdict: Verdict) -> bool {
        match (self, verdict) {
            (Self::Any, _) => true,
            (Self::Dropped, Verdict::Drop(_)) => true,
            (Self::DroppedFor(wanted), Verdict::Drop(reason)) => wanted.index() == reason.index(),
            (Self::Dropped | Self::DroppedFor(_), _) => false,
        }
    }
}

/// Whether a packet is wanted, as far as that can be told before its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    Wanted,
    /// If the connection that it may begin is.
    Perhaps(FlowKey),
    Unwanted,
}
