//! Why the kernel gets a packet: the question that let it pass, asked once more.
//!
//! Decides nothing: it is asked of packets that have passed, by the functions that the stages ask.

use xvs_proto::{Fragment, Packet, Parsed, Protocol, ethernet, parse};

use super::dry_run::DryRun;
use crate::burst::classify::Class;
use crate::conn::Direction;
use crate::new_connection::service::{is_ftp_data, is_valid_source, may_begin};
use crate::snapshot::Snapshot;

/// A sentence about a packet that goes in this direction of a connection, if it meets one.
pub(super) fn why(run: &DryRun, met: Option<Direction>, snapshot: &Snapshot) -> &'static str {
    match &run.class {
        Class::Decided(_) => untouched(run, snapshot),
        Class::Fragment(_) => "the datagram is the kernel's",
        Class::Error(_) => match (run.quote(), met) {
            (None, _) => "it is an ICMP error that does not quote enough to say which connection it is about",
            (_, None) => "it is an ICMP error about no connection of the director's",
            _ if snapshot.settings.requests_stay => BACKUP_ONLY,
            _ => "it is an ICMP error about a packet that the kernel routes itself",
        },
        Class::Flow(packet) => match met {
            Some(Direction::Outbound) => {
                "it is a reply from the virtual address itself: real servers send those past the director"
            }
            _ if snapshot.settings.requests_stay => BACKUP_ONLY,
            Some(Direction::Inbound) => "the kernel routes it",
            None => begins_nothing(run, packet, snapshot),
        },
    }
}

const BACKUP_ONLY: &str = "`backup_only` leaves what clients send to the kernel";

/// Of a frame that was not looked into further.
fn untouched(run: &DryRun, snapshot: &Snapshot) -> &'static str {
    let packet = match parse(&run.bytes) {
        Ok(Parsed::Ip(packet)) => packet,
        Ok(Parsed::Other) => return "it is neither IPv4 nor IPv6",
        Err(_) => return "it contradicts itself, and no service is of its family",
    };
    let link = snapshot.egress.link(run.link);
    if packet.network != ethernet::HEADER_LEN {
        return "its VLAN is none of this machine's";
    }
    if link.is_none_or(|link| link.mac != ethernet::dest(&run.bytes)) {
        return "its link address is not that of the interface: it is another machine's, or everybody's";
    }
    if !snapshot.services.any_of(packet.family()) {
        return "there is no service of its family";
    }
    if packet.fragment != Fragment::Whole {
        return "it is a fragment of which later ones do not say what they belong to";
    }
    "its protocol has no services: they are of TCP, UDP and SCTP, and AH and ESP go with UDP"
}

/// Of a packet without a connection.
fn begins_nothing(run: &DryRun, packet: &Packet, snapshot: &Snapshot) -> &'static str {
    let flow = &packet.flow;
    if !may_begin(packet, &snapshot.settings) {
        return match flow.protocol {
            Protocol::TCP => {
                "it meets no connection, and as a TCP packet that is no SYN begins none (`sloppy_tcp`)"
            }
            Protocol::SCTP => {
                "it meets no connection, and as an SCTP packet without INIT begins none (`sloppy_sctp`)"
            }
            _ => "it meets no connection, and its protocol begins none",
        };
    }
    if !snapshot.serves(run.link, packet) {
        return "no service has its mark, or its protocol, address and port";
    }
    if !is_valid_source(flow.source.addr, flow.dest.addr, snapshot) {
        return "its source address is nobody's, or this machine's own";
    }
    if is_ftp_data(packet) {
        return "it comes from port 20, FTP's data, which begins no connection";
    }
    "no real server takes it, and the kernel may have somebody who does (FTP's other ports, `cache_bypass`)"
}
