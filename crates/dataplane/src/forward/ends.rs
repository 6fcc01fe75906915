//! The ends of a connection that forwarding writes into packets.

use xvs_proto::Endpoint;
use xvs_sched::ForwardingMethod;

use crate::conn::Connection;

/// The ends of a connection that forwarding writes into packets.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// Who the client is.
    pub client: Endpoint,
    /// Where clients send to.
    pub virtual_endpoint: Endpoint,
    /// Where the connection's packets go.
    pub dest: Endpoint,
    /// The director's own endpoint that the destination sees instead of the client's.
    pub local: Option<Endpoint>,
    /// How.
    pub method: ForwardingMethod,
}

impl Ends {
    /// Those of a connection.
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
}
