//! Whether a connection's packets are offloaded, or the reason why not, for operators.

use xvs_proto::{FlowKey, LinkId};

use super::begin::plan;
use super::not_offloaded::NotOffloaded;
use super::shared::Offload;
use crate::burst::context::Context;
use crate::conn::{Direction, TableReader};
use crate::egress::Path;
use crate::forward::Ends;
use crate::new_connection::eviction::is_half_open;
use crate::snapshot::DestinationId;

impl Offload {
    /// Whether the XDP program forwards the connection of this packet, which arrives on `link`. `None` if the packet
    /// has no connection.
    pub fn standing(
        &self,
        reader: &mut TableReader,
        flow: &FlowKey,
        link: LinkId,
        cx: Context<'_>,
    ) -> Option<Result<(), NotOffloaded>> {
        reader.with_connection(flow, |table, connection, direction| {
            let destination = DestinationId(connection.dest_ref());
            if self.flows.of(connection.id()).is_some_and(|record| self.is_in_force(record, destination)) {
                return Ok(());
            }
            let arrival = match direction {
                Direction::Inbound => link,
                // Requests arrive on the link on which replies leave.
                Direction::Outbound => {
                    let egress = &cx.snapshot.egress;
                    let key = Ends::of(&connection).key_to_client(0).of_vrf(egress.vrf(link));
                    Path::find(egress, key, 0).hop().map_or(link, |hop| hop.link)
                }
            };
            plan(&connection, table, arrival, cx)?;
            if is_half_open(connection.protocol(), connection.state()) {
                return Err(NotOffloaded::NotEstablished);
            }
            Err(if self.unused.len() == 0 { NotOffloaded::Full } else { NotOffloaded::Few })
        })
    }
}
