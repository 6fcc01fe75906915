//! Next hops: the link and link addresses of packets, whether packets were sent there, and next hops whose link address
//! is unknown.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use xvs_proto::plain::LinkAddresses;
use xvs_proto::{LinkId, MacAddr, ethernet};

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The link to leave by.
    pub link: LinkId,
    /// The link's own address.
    pub source_mac: MacAddr,
    /// The neighbour's link address.
    pub dest_mac: MacAddr,
    /// The largest packet on this path, in bytes without link header.
    pub mtu: u32,
}

impl Hop {
    /// The addresses of a frame that leaves by it.
    #[inline]
    pub(crate) fn addresses(&self) -> LinkAddresses {
        let mut addresses = LinkAddresses::default();
        ethernet::set_addresses(&mut addresses, self.source_mac, self.dest_mac);
        addresses
    }
}

/// A resolved gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) hop: Hop,
    pub(super) used: Used,
}

impl PartialEq for Gateway {
    /// Whether packets on both paths leave identically.
    fn eq(&self, other: &Self) -> bool {
        self.hop == other.hop
    }
}

/// Whether a packet was sent to a neighbour since `Egress::take_used`. Workers set it, the control thread clears it.
#[derive(Debug, Clone, Default)]
pub(super) struct Used(Arc<AtomicBool>);

impl Used {
    #[inline]
    pub(super) fn mark(&self) {
        // Relaxed: it orders no other memory. The load keeps the cache line shared among workers.
        if !self.0.load(Ordering::Relaxed) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was marked; from now on it is not.
    pub(super) fn take(&self) -> bool {
        // Relaxed: a worker that sets it now sets it again with its next packet.
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Next hops without a link address, for the control thread to resolve. A full queue refuses new entries; the next
/// packet adds them again.
pub type Unresolved = ArrayQueue<(LinkId, IpAddr)>;

/// The next hop of a packet that waits for its link address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnresolvedHop {
    /// The link to leave by.
    pub link: LinkId,
    /// The address of the neighbour.
    pub addr: IpAddr,
    /// The largest packet on the path, in bytes without link header.
    pub mtu: u32,
}
