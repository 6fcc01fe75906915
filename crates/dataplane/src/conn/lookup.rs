//! The key and the kind of a look-up in the table.

use xvs_proto::FlowKey;

/// The connection or template that a look-up searches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sought {
    /// The connection of a flow's packets.
    Connection(FlowKey),
    /// The template with this identity.
    Template(FlowKey),
}

impl Sought {
    pub(crate) fn flow(&self) -> &FlowKey {
        let (Self::Connection(flow) | Self::Template(flow)) = self;
        flow
    }
}
