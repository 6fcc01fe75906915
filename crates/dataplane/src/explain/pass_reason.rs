//! The reason why a packet goes to the kernel: the checks of the stages, repeated to name the check that passed it.
//!
//! Decides nothing. Runs for passed packets, with the functions that the stages use.

use xvs_proto::{Fragment, Packet, Parsed, Protocol, ethernet, parse};

use super::dry_run::DryRun;
use crate::burst::classify::Class;
use crate::conn::Direction;
use crate::new_connection::service::{is_ftp_data, is_valid_source, may_begin};
use crate::snapshot::Snapshot;

/// The reason as a sentence. `met` is the packet's direction in its connection, if it has one.
pub(super) fn why(run: &DryRun, met: Option<Direction>, snapshot: &Snapshot) -> &'static str {
    match &run.class {
        // An explained frame has one buffer.
        Class::Decided(_) => untouched(run, snapshot),
        Class::Fragment(_) => "no service matches its datagram",
        Class::Error(_) => match (run.quote(), met) {
            (None, _) => "it is an ICMP error whose quoted packet is too short to identify a connection",
            (_, None) => "it is an ICMP error about a packet without a connection",
            _ if snapshot.settings.requests_stay => BACKUP_ONLY,
            _ => "it is an ICMP error about a packet that the kernel routes itself",
        },
        Class::Flow(packet) => match met {
            Some(Direction::Outbound) => {
                "it is an IPv4 reply from the virtual address itself, which only `forward_shared` 1 forwards"
            }
            _ if snapshot.settings.requests_stay => BACKUP_ONLY,
            Some(Direction::Inbound) => "the kernel routes it",
            None => begins_nothing(run, packet, snapshot),
        },
    }
}

const BACKUP_ONLY: &str = "`backup_only` passes clients' packets to the kernel";

/// The reason for a packet from a client on the director to a real server that does not masquerade.
pub(super) const OWN_CLIENT: &str = "its client is the director itself, whose kernel sends from the virtual address: a \
                                     real server of direct routing or of a tunnel would reply to itself; use NAT or \
                                     FULLNAT, or another machine";

/// The reason for a frame that was passed during classification.
fn untouched(run: &DryRun, snapshot: &Snapshot) -> &'static str {
    let packet = match parse(&run.bytes) {
        Ok(Parsed::Ip(packet)) => packet,
        Ok(Parsed::Other) => return "it is neither IPv4 nor IPv6",
        Err(_) => return "it is malformed, and there is no service of its family",
    };
    let link = snapshot.egress.link(run.link);
    if packet.network != ethernet::HEADER_LEN {
        return "this machine has no interface for its VLAN";
    }
    if link.is_none_or(|link| link.mac != ethernet::dest(&run.bytes)) {
        return "its link address is not that of the interface: it is for another machine, or for several";
    }
    if !snapshot.services.any_of(packet.family()) {
        return "there is no service of its family";
    }
    if packet.fragment != Fragment::Whole {
        return "it is a fragment of an ICMP message, or of a protocol without services";
    }
    "its protocol has no services: services are of TCP, UDP and SCTP, and AH and ESP belong to UDP"
}

/// The reason for a packet without a connection.
fn begins_nothing(run: &DryRun, packet: &Packet, snapshot: &Snapshot) -> &'static str {
    let flow = &packet.flow;
    if !may_begin(packet, &snapshot.settings) {
        return match flow.protocol {
            Protocol::TCP => {
                "no connection matches, and a TCP packet without SYN creates none (`sloppy_tcp`)"
            }
            Protocol::SCTP => {
                "no connection matches, and an SCTP packet without INIT creates none (`sloppy_sctp`)"
            }
            _ => "no connection matches, and packets of its protocol create none",
        };
    }
    if !snapshot.serves(run.link, packet) {
        return "no service has its mark, or its protocol, address and port";
    }
    if !is_valid_source(flow.source.addr, flow.dest.addr, run.link, snapshot) {
        return "its source address is not that of a host, or it is this machine's own";
    }
    if is_ftp_data(packet) {
        return "it comes from the FTP data port 20, which creates no connection";
    }
    "its service has no usable real server, so the kernel delivers or routes it (an FTP service's other ports, \
     `cache_bypass`)"
}
