//! ICMP errors about masqueraded connections: outside and in the packet that they quote, they get the addresses and the
//! port that their receiver knows.
//!
//! As under IPVS, the message's checksum and the header checksums are computed anew; that of the quoted transport, of
//! which there may be a part only, stays. Errors about connections of other methods go as any packet does. Not here:
//! whose error it is (`flow/icmp_error.rs`).

use xvs_proto::ipv4::Ipv4;
use xvs_proto::{Endpoint, Family, Packet, icmp, icmpv6, tcp};

use std::net::IpAddr;

use super::nat::{End, set_address};
use super::{Ends, admit_reply, admit_request, finish, strip, way};
use crate::shm::Frame;
use crate::snapshot::Path;
use crate::verdict::{DropReason, Verdict};

/// Whether the checksum of an ICMP message is right.
pub fn is_summed(frame: &Frame, packet: &Packet) -> bool {
    let message = &frame.bytes()[packet.transport..packet.end];
    match (packet.flow.source.addr, packet.flow.dest.addr) {
        (IpAddr::V6(source), IpAddr::V6(dest)) => icmpv6::is_summed(message, source, dest),
        _ => icmp::is_summed(message),
    }
}

/// Sends an error about a reply, which `quote` holds as the client saw it, to the destination that replied.
pub fn request(frame: &mut Frame, packet: &Packet, quote: &Packet, ends: &Ends, path: Path) -> Verdict {
    if path == Path::Local {
        // As it came it is right where nothing is rewritten, and nothing else is delivered here.
        return match ends.dest == quote.connection_key().source {
            true => Verdict::PassToKernel,
            false => Verdict::Drop(DropReason::DestinationLocal),
        };
    }
    let sent = way(path).and_then(|hop| {
        admit_request(frame, packet, hop.mtu, 0)?;
        rewrite(frame, packet, quote, End::Source, ends.dest);
        strip(frame, packet);
        Ok(hop)
    });
    finish(frame, sent)
}

/// Sends an error about a request, which `quote` holds as the destination saw it, to the client, from the virtual
/// address.
pub fn reply(frame: &mut Frame, packet: &Packet, quote: &Packet, ends: &Ends, path: Path) -> Verdict {
    let sent = way(path).and_then(|hop| {
        admit_reply(frame, packet, hop.mtu)?;
        rewrite(frame, packet, quote, End::Dest, ends.virtual_endpoint);
        strip(frame, packet);
        Ok(hop)
    });
    finish(frame, sent)
}

/// Puts an endpoint in the place of that end of the quoted packet, and its address in the place of the error's other
/// end: who sent the packet is whom the error goes to.
fn rewrite(frame: &mut Frame, packet: &Packet, quote: &Packet, end: End, to: Endpoint) {
    let (outer, port) = match end {
        End::Source => (End::Dest, tcp::field::SOURCE),
        End::Dest => (End::Source, tcp::field::DEST),
    };
    let bytes = &mut frame.bytes_mut()[..packet.end];
    set_address(&mut bytes[packet.network..], outer, to.addr);
    set_address(&mut bytes[quote.network..], end, to.addr);
    if quote.has_ports() {
        bytes[quote.transport..][port].copy_from_slice(&to.port.to_be_bytes());
    }
    if packet.family() == Family::V4 {
        Ipv4::edit(&mut bytes[quote.network..]).write_checksum();
    }
    let message = &mut bytes[packet.transport..];
    match (outer, packet.flow.source.addr, packet.flow.dest.addr, to.addr) {
        (End::Dest, IpAddr::V6(source), _, IpAddr::V6(dest))
        | (End::Source, _, IpAddr::V6(dest), IpAddr::V6(source)) => {
            icmpv6::write_checksum(message, source, dest);
        }
        _ => icmp::write_checksum(message),
    }
}
