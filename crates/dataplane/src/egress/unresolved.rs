//! Next hops for which packets were dropped because their link address was unknown.

use std::net::IpAddr;

use crossbeam::queue::ArrayQueue;
use xvs_proto::LinkId;

/// Next hops without a link address, for the control thread to resolve. A full queue refuses new entries; the next
/// packet adds them again.
pub type Unresolved = ArrayQueue<(LinkId, IpAddr)>;
