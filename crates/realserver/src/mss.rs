//! The maximum segment size that a tunnel's real server announces to clients (`advmss` of a route).

use std::net::IpAddr;

use crate::{Method, Realserver};

impl Realserver {
    /// The maximum segment size, in bytes, that this machine should announce to clients of `vip`, so that no tunnel
    /// fragments their packets: the program does not decapsulate fragments. `None` if `vip` is not up with
    /// [`Method::Tunnel`].
    pub fn tunnel_mss(&self, vip: IpAddr) -> Option<u32> {
        let served =
            self.locked.record.virtuals.get(&vip).filter(|served| served.method == Method::Tunnel)?;
        let headers = TUNNEL_HEADERS + if vip.is_ipv4() { 20 } else { 40 } + 20;
        self.interfaces.link(&served.dev)?.mtu.checked_sub(headers)
    }
}

/// The longest outer headers from a director, in bytes: IPv6, UDP and GUE.
const TUNNEL_HEADERS: u32 = 40 + 8 + 4;
