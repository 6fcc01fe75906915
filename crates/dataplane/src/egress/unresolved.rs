//! Next hops that packets were dropped for, because their link address was missing.

use std::net::IpAddr;

use crossbeam::queue::ArrayQueue;
use xvs_proto::LinkId;

/// Next hops whose link address was missing, for the control thread to have resolved. Full, it forgets the newest:
/// the next packet brings it again.
pub type Unresolved = ArrayQueue<(LinkId, IpAddr)>;
