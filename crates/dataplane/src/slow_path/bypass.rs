//! Marked packets that no destination takes, on to where they were sent (`cache_bypass`).
//!
//! What the kernel would deliver here by a policy rule of the mark gets a connection without a destination, as under IPVS:
//! listed as 0.0.0.0:0, with states of its own, and counted nowhere. What the kernel would forward is the kernel's: IPVS
//! never meets it. Source: ipvs-behaviour, section 2.3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::{Endpoint, Family, Packet, is_host};
use xvs_sched::{ForwardingMethod, ServiceKey};
use xvs_xdp::Frame;

use super::icmp_reply::{Offence, Speaker};
use crate::burst::flows::{Begun, FIRST_TIMEOUT, Flows};
use crate::clock::Millis;
use crate::conn::{ConnId, Direction, Flags, Inserted, NewConnection};
use crate::egress::Path;
use crate::forward;
use crate::snapshot::{Service, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// Whether a packet that no destination of this service takes goes where it was sent to.
pub(crate) fn may_bypass(service: &Service, packet: &Packet, snapshot: &Snapshot) -> bool {
    let to = packet.flow.dest.addr;
    snapshot.settings.cache_bypass
        && matches!(service.key, ServiceKey::Mark { .. })
        && is_host(to)
        && !snapshot.egress.is_local(to)
}

impl Flows {
    /// Enters a connection without a destination.
    pub(crate) fn begin_bypass(
        &mut self,
        packet: &Packet,
        mark: u32,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Result<Begun, Verdict> {
        if !snapshot.egress.delivers_mark(mark) {
            return Err(Verdict::PassToKernel);
        }
        let nowhere: IpAddr = match packet.flow.dest.family() {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let new = NewConnection {
            protocol: packet.flow.protocol,
            client: packet.flow.source,
            virtual_endpoint: packet.flow.dest,
            dest: Endpoint::new(nowhere, 0),
            method: ForwardingMethod::DirectRouting,
            flags: Flags::NONE,
            state: 0,
            expires: now + FIRST_TIMEOUT,
            timeout_seconds: 0,
            dest_ref: NO_DESTINATION,
            mark,
            controller: None,
            local: None,
        };
        match self.pressure.insert(&mut self.table, &new, snapshot, &self.counters, now) {
            Inserted::New(id) | Inserted::Existing(id) => Ok(Begun::Connection(id)),
            // None is taken, as none is asked for.
            Inserted::Full | Inserted::LocalTaken => Err(Verdict::Drop(DropReason::TableFull)),
        }
    }

    /// What the sender of a packet is told. Where the packet was sent to by a connection without a destination is
    /// another host, in whose name nobody may speak: in IPv4 nothing is said, in IPv6 the director says it, as the kernel.
    pub fn admit<'a>(&self, offence: Offence<'a>, connection: Option<ConnId>) -> Option<Offence<'a>> {
        let is_bypassed = connection.is_some_and(|id| self.table.connection(id).is_bypass());
        match offence.packet.family() {
            _ if !is_bypassed => Some(offence),
            Family::V4 => None,
            Family::V6 => Some(Offence { speaker: Speaker::Director, ..offence }),
        }
    }

    /// A client's packet of such a connection.
    pub(crate) fn bypass(
        &mut self,
        frame: &mut Frame,
        packet: &Packet,
        id: ConnId,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Verdict {
        let connection = self.table.connection(id);
        connection.count_in_packet();
        self.advance(id, packet, Direction::Inbound, None, &snapshot.settings, now);
        let path = Path::find(&snapshot.egress, packet.flow.dest.addr, self.table.hash(&packet.flow));
        let verdict = forward::unchanged(frame, packet, path);
        self.report_unresolved(verdict, path);
        verdict
    }
}

/// A number that no destination has.
const NO_DESTINATION: u32 = u32::MAX;
