//! The comparison of packets with a capture's filter.
//!
//! Runs for each received packet while a capture is active, before the packet is copied. The addresses and ports of the
//! packet and all endpoints of its connection are compared. A filter for a real server therefore finds the packets of
//! its clients, and a filter for a service finds its replies, with every forwarding method. If a packet may begin a
//! connection, its real server is not known yet: such a packet is compared again at the end of its burst. Cost: a
//! parse, and a look-up of the connection if the filter has an address, a port or a service.

use xvs_proto::{Endpoint, FlowKey, Fragment, LinkId, Packet, icmp, quoted};
use xvs_sched::ServiceKey;
use xvs_xdp::Frame;

use super::filter::{Filter, Judged};
use crate::burst::flows::{Description, Flows};
use crate::port::packet_of;
use crate::snapshot::Snapshot;

/// A received packet, with the data that filters compare.
pub(super) struct Subject {
    /// `None` if the frame is no packet or malformed.
    packet: Option<Packet>,
    /// The flow by which the packet's connection is looked up.
    flow: Option<FlowKey>,
    connection: Option<Description>,
}

impl Subject {
    /// Parses a frame, and looks up its connection if `flows` is given.
    pub(super) fn of(frame: &Frame, flows: Option<&Flows>) -> Self {
        let packet = packet_of(frame);
        let flow = packet.map(|packet| flow(frame.bytes(), &packet));
        Self { packet, flow, connection: flow.zip(flows).and_then(|(flow, flows)| flows.describe(&flow)) }
    }
}

/// The flow by which a packet's connection is looked up. For an ICMP error it is the flow of the quoted packet.
fn flow(frame: &[u8], packet: &Packet) -> FlowKey {
    let quote = match packet.is_followed_error() && packet.fragment == Fragment::Whole {
        true => quoted(frame, packet.transport + icmp::HEADER_LEN..packet.end, packet.family()),
        false => None,
    };
    quote.map_or_else(|| packet.connection_key(), |quote| quote.connection_key().reversed())
}

impl Filter {
    /// Whether the filter needs the packet's connection.
    pub(super) fn asks_for_ends(&self) -> bool {
        self.address.is_some() || self.port.is_some() || self.service.is_some()
    }

    /// Whether a packet that was received on this link passes the filter, except for its verdict.
    pub(super) fn judge(&self, link: LinkId, subject: Option<&Subject>, snapshot: &Snapshot) -> Judged {
        if let Some(name) = &self.interface
            && snapshot.egress.link(link.wire()).is_none_or(|link| link.name != *name)
        {
            return Judged::Unwanted;
        }
        if !self.asks_for_ends() {
            return Judged::Wanted;
        }
        let Some(Subject { packet: Some(packet), flow: Some(flow), connection }) = subject else {
            return Judged::Unwanted;
        };
        let of_service = match (self.service, connection) {
            (None, _) => true,
            (Some(key), Some(connection)) => is_of(connection, key),
            (Some(key), None) => {
                let mark = snapshot.marks.of(link, packet);
                snapshot
                    .services
                    .for_packet(mark, flow.protocol, flow.dest)
                    .is_some_and(|service| service.key == key)
            }
        };
        let own = [packet.flow.source, packet.flow.dest, flow.source, flow.dest];
        match connection {
            _ if !of_service => Judged::Unwanted,
            Some(connection) if self.takes(own.into_iter().chain(ends(connection))) => Judged::Wanted,
            None if self.takes(own.into_iter()) => Judged::Wanted,
            None if packet.has_ports() && packet.fragment == Fragment::Whole => Judged::Perhaps(*flow),
            _ => Judged::Unwanted,
        }
    }

    /// Whether a packet passes the filter, after the pipeline has processed it and may have begun its connection.
    pub(super) fn takes_begun(&self, flow: &FlowKey, flows: &Flows) -> bool {
        flows.describe(flow).is_some_and(|connection| {
            self.takes([flow.source, flow.dest].into_iter().chain(ends(&connection)))
        })
    }

    fn takes(&self, mut ends: impl Iterator<Item = Endpoint> + Clone) -> bool {
        self.address.is_none_or(|network| ends.clone().any(|end| network.contains(end.addr)))
            && self.port.is_none_or(|port| ends.any(|end| end.port == port))
    }
}

fn ends(connection: &Description) -> impl Iterator<Item = Endpoint> + Clone {
    let ends = connection.ends;
    [ends.client, ends.virtual_endpoint, ends.dest].into_iter().chain(ends.local)
}

/// Whether a connection belongs to this service.
fn is_of(connection: &Description, key: ServiceKey) -> bool {
    let at = connection.ends.virtual_endpoint;
    match key {
        ServiceKey::Address { protocol, endpoint } => {
            connection.protocol == protocol
                && at.addr == endpoint.addr
                && [0, at.port].contains(&endpoint.port)
        }
        ServiceKey::Mark { mark, family } => connection.mark == mark && at.family() == family,
    }
}
