//! Next hops whose link address is unknown.

use std::net::IpAddr;

use crossbeam::queue::ArrayQueue;
use xvs_proto::LinkId;

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
