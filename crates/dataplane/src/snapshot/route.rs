//! All that the short way needs of a destination, on one cache line.
//!
//! Made from the destination whenever that changes, so it never says anything else. Not here: what packets of another
//! kind need (`destinations.rs`).

use xvs_proto::{LinkId, plain::LinkAddresses};

use super::destinations::Destination;
use crate::counters::SharedStats;
use crate::egress::Path;

/// The next hop and the counters of an available destination.
#[derive(Clone)]
#[repr(align(64))]
pub struct Route {
    /// The counters of the destination.
    pub(crate) stats: SharedStats,
    /// The counters of its service.
    pub(crate) service: SharedStats,
    /// The addresses for the link.
    pub(crate) addresses: LinkAddresses,
    /// The link to leave by.
    pub(crate) link: LinkId,
    /// The largest packet on the path, in bytes without link header.
    pub(crate) mtu: u32,
}

const _: () = assert!(size_of::<Option<Route>>() == 64);

impl Route {
    /// The route to a destination. `None`: it is not available, or its next hop is not resolved.
    pub(super) fn to(destination: &Destination) -> Option<Self> {
        let Path::To(hop) = destination.path else { return None };
        destination.available.then(|| Self {
            stats: destination.live.stats.clone(),
            service: destination.service.stats.clone(),
            addresses: hop.addresses(),
            link: hop.link,
            mtu: hop.mtu,
        })
    }
}
