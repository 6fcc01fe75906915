//! The endpoints of a connection, for forwarding.

use xvs_proto::network::RouteKey;
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use crate::conn::Connection;

/// The endpoints of a connection, for forwarding.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The client's endpoint.
    pub client: Endpoint,
    /// The endpoint to which the client sends.
    pub virtual_endpoint: Endpoint,
    /// The real server's endpoint.
    pub dest: Endpoint,
    /// The director's own endpoint, which the destination sees instead of the client's (FULLNAT).
    pub local: Option<Endpoint>,
    /// The forwarding method.
    pub method: ForwardingMethod,
}

impl Ends {
    /// The endpoints of a connection in the table.
    #[inline]
    pub fn of(connection: &Connection<'_>) -> Self {
        Self {
            client: connection.client(),
            local: connection.local(),
            virtual_endpoint: connection.virtual_endpoint(),
            dest: connection.dest(),
            method: connection.method(),
        }
    }

    /// Whether client and destination belong to different families, so that packets are translated between them.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.method == ForwardingMethod::FullNat && self.client.family() != self.dest.family()
    }

    /// The flow key of replies on a masqueraded connection with this protocol.
    pub(crate) fn replies(&self, protocol: Protocol) -> FlowKey {
        FlowKey { protocol, source: self.dest, dest: self.local.unwrap_or(self.client) }
    }

    /// The key of the route look-up for packets with this mark to the client, outside any VRF. As in IPVS, the source
    /// is the virtual address.
    #[inline]
    pub fn key_to_client(&self, mark: u32) -> RouteKey {
        let (dest, source) = (self.client.addr, self.virtual_endpoint.addr);
        RouteKey { dest, source, mark, vrf: None }
    }
}
