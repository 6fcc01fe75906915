//! All data about a destination that the fast path needs, on one cache line.
//!
//! Created from the destination whenever that changes, so the two never differ. `destinations.rs` has the data for
//! other packets.

use std::sync::Arc;

use xvs_proto::{LinkId, plain::LinkAddresses};

use crate::counters::SharedStats;
use crate::egress::Hop;
use crate::forward::Template;

/// The next hop and the counters of an available destination.
#[derive(Clone)]
#[repr(align(64))]
pub(crate) struct Route {
    /// The counters of the destination.
    pub(crate) stats: SharedStats,
    /// The headers of a tunnel, by the packet's family; `None` also if they cannot be prepared.
    pub(crate) tunnel: Option<Arc<[Template; 2]>>,
    /// The addresses for the link.
    pub(crate) addresses: LinkAddresses,
    /// The link to leave by.
    pub(crate) link: LinkId,
    /// The largest packet on the path, in bytes without link header.
    pub(crate) mtu: u32,
}

const _: () = assert!(size_of::<Option<Route>>() == 64);

impl Route {
    /// Link, addresses there, and MTU.
    pub(super) fn way(&self) -> (LinkId, LinkAddresses, u32) {
        (self.link, self.addresses, self.mtu)
    }

    /// The route by a next hop.
    pub(super) fn by(hop: &Hop, tunnel: Option<Arc<[Template; 2]>>, stats: SharedStats) -> Self {
        Self { stats, tunnel, addresses: hop.addresses(), link: hop.link, mtu: hop.mtu }
    }
}
