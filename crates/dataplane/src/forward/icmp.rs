//! Rewriting of ICMP errors about NAT and FULLNAT connections. The error and the packet that it quotes get the
//! addresses and ports that the receiver of the error knows.
//!
//! As in IPVS, the message checksum and the header checksums are recomputed. The checksum of the quoted transport
//! header does not change, because the quote may be incomplete. Errors about connections with other methods are
//! forwarded like other packets. `general_path/icmp_error.rs` finds the connection of an error.

use std::net::IpAddr;

use xvs_proto::ipv4::Ipv4;
use xvs_proto::{Endpoint, Family, LinkId, Packet, icmp, icmpv6};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use super::ends::Ends;
use super::identification::Identification;
use super::nat::{End, set_address};
use super::steps::{admit_reply, admit_request, finish, hop, strip};
use super::{local, translate};
use crate::egress::Path;
use crate::verdict::{DropReason, Verdict};

/// Whether the checksum of an ICMP message is correct.
pub fn is_summed(frame: &Frame, packet: &Packet) -> bool {
    let message = &frame.bytes()[packet.transport..packet.end];
    match (packet.flow.source.addr, packet.flow.dest.addr) {
        (IpAddr::V6(source), IpAddr::V6(dest)) => icmpv6::is_summed(message, source, dest),
        _ => icmp::is_summed(message),
    }
}

/// Sends an error about a reply to the destination that sent the reply. `quote` is the reply as the client received it.
/// The error was received on `link`.
pub fn request(
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    quote: &Packet,
    ends: &Ends,
    path: Path,
    ids: &mut Identification,
) -> Verdict {
    let outside = (packet.flow.source.addr, ends.dest.addr);
    let quoted = (ends.dest, ends.local.unwrap_or(ends.client));
    if path == Path::Local {
        return match ends.method {
            _ if ends.dest == quote.connection_key().source => Verdict::PassToKernel,
            ForwardingMethod::Nat if !ends.dest.addr.is_loopback() => {
                rewrite(frame, packet, quote, outside, quoted);
                Verdict::Transmit(link.own())
            }
            _ => Verdict::Drop(DropReason::DestinationLocal),
        };
    }
    let sent = hop(path).and_then(|hop| {
        if packet.family() != ends.dest.family() {
            return translate::icmp::send(frame, packet, quote, quoted, hop, ids);
        }
        admit_request(frame, packet, hop.mtu)?;
        rewrite(frame, packet, quote, outside, quoted);
        strip(frame, packet);
        Ok(hop)
    });
    finish(frame, path, sent)
}

/// Sends an error about a request to the client, from the virtual address. `quote` is the request as the destination
/// received it.
pub fn reply(
    frame: &mut Frame,
    packet: &Packet,
    quote: &Packet,
    ends: &Ends,
    path: Path,
    ids: &mut Identification,
) -> Verdict {
    let outside = (ends.virtual_endpoint.addr, ends.client.addr);
    let quoted = (ends.client, ends.virtual_endpoint);
    let crosses = packet.family() != ends.client.family();
    let path = if crosses { local::by_lo(path) } else { path };
    if path == Path::Local {
        rewrite(frame, packet, quote, outside, quoted);
        return local::by_loopback(frame);
    }
    let sent = hop(path).and_then(|hop| {
        if crosses {
            return translate::icmp::send(frame, packet, quote, quoted, hop, ids);
        }
        admit_reply(frame, packet, hop.mtu)?;
        rewrite(frame, packet, quote, outside, quoted);
        strip(frame, packet);
        Ok(hop)
    });
    finish(frame, path, sent)
}

/// Rewrites the addresses in an error, and the endpoints in the packet that it quotes.
fn rewrite(
    frame: &mut Frame,
    packet: &Packet,
    quote: &Packet,
    outside: (IpAddr, IpAddr),
    quoted: (Endpoint, Endpoint),
) {
    let bytes = &mut frame.bytes_mut()[..packet.end];
    set_address(&mut bytes[packet.network..], End::Source, outside.0);
    set_address(&mut bytes[packet.network..], End::Dest, outside.1);
    set_address(&mut bytes[quote.network..], End::Source, quoted.0.addr);
    set_address(&mut bytes[quote.network..], End::Dest, quoted.1.addr);
    if quote.has_ports() {
        translate::write_ports(&mut bytes[quote.transport..], quoted.0, quoted.1);
    }
    if packet.family() == Family::V4 {
        Ipv4::edit(&mut bytes[quote.network..]).write_checksum();
    }
    let message = &mut bytes[packet.transport..];
    match outside {
        (IpAddr::V6(source), IpAddr::V6(dest)) => icmpv6::write_checksum(message, source, dest),
        _ => icmp::write_checksum(message),
    }
}
