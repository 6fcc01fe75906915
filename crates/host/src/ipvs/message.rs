//! Messages of the generic netlink family `IPVS`.
//!
//! Source: kernel `include/uapi/linux/ip_vs.h`, from which the constants are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NlasIterator, ParseableParametrized, parse_string, parse_u8,
    parse_u16, parse_u16_be, parse_u32,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use crate::ipvs::{Destination, Service, Timeouts};

/// A message of the family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// The request for all services.
    GetServices,
    /// The request for the destinations of a service.
    GetDestinations(Service),
    /// The request for the timeouts.
    GetTimeouts,
    /// A service, without its destinations.
    Service(Service),
    /// A destination of the service that was asked for.
    Destination(Destination),
    /// The timeouts.
    Timeouts(Timeouts),
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        "IPVS"
    }

    fn command(&self) -> u8 {
        match self {
            Self::GetServices => CMD_GET_SERVICE,
            Self::GetDestinations(_) => CMD_GET_DEST,
            Self::GetTimeouts => CMD_GET_CONFIG,
            Self::Service(_) => CMD_NEW_SERVICE,
            Self::Destination(_) => CMD_NEW_DEST,
            Self::Timeouts(_) => CMD_SET_CONFIG,
        }
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Message {
    /// The attributes of a request.
    fn attributes(&self) -> Vec<DefaultNla> {
        match self {
            Self::GetDestinations(service) => {
                let mut nested = vec![0; named(service).as_slice().buffer_len()];
                named(service).as_slice().emit(&mut nested);
                vec![DefaultNla::new(CMD_ATTR_SERVICE, nested)]
            }
            _ => Vec::new(),
        }
    }
}

/// The attributes that name a service.
fn named(service: &Service) -> Vec<DefaultNla> {
    let family = DefaultNla::new(SVC_ATTR_AF, service.family.to_ne_bytes().to_vec());
    if service.mark != 0 {
        return vec![family, DefaultNla::new(SVC_ATTR_FWMARK, service.mark.to_ne_bytes().to_vec())];
    }
    let mut addr = match service.addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    addr.resize(ADDR_BYTES, 0);
    vec![
        family,
        DefaultNla::new(SVC_ATTR_PROTOCOL, service.protocol.to_ne_bytes().to_vec()),
        DefaultNla::new(SVC_ATTR_ADDR, addr),
        DefaultNla::new(SVC_ATTR_PORT, service.port.to_be_bytes().to_vec()),
    ]
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes().as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes().as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(attributes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        if header.cmd == CMD_SET_CONFIG {
            return timeouts(attributes).map(Self::Timeouts);
        }
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match (header.cmd, attribute.kind()) {
                (CMD_NEW_SERVICE, CMD_ATTR_SERVICE) => return service(attribute.value()).map(Self::Service),
                (CMD_NEW_DEST, CMD_ATTR_DEST) => {
                    return destination(attribute.value()).map(Self::Destination);
                }
                _ => {}
            }
        }
        Err(format!("a reply of IPVS to the command {} without its object", header.cmd).into())
    }
}

fn timeouts(attributes: &[u8]) -> Result<Timeouts, DecodeError> {
    let mut timeouts = Timeouts::default();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let field = match attribute.kind() {
            CMD_ATTR_TIMEOUT_TCP => &mut timeouts.tcp_seconds,
            CMD_ATTR_TIMEOUT_TCP_FIN => &mut timeouts.tcp_fin_seconds,
            CMD_ATTR_TIMEOUT_UDP => &mut timeouts.udp_seconds,
            _ => continue,
        };
        *field = parse_u32(attribute.value())?;
    }
    Ok(timeouts)
}

fn service(attributes: &[u8]) -> Result<Service, DecodeError> {
    let mut service = Service::default();
    let mut addr = [0; ADDR_BYTES];
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            SVC_ATTR_AF => service.family = parse_u16(value)?,
            SVC_ATTR_PROTOCOL => service.protocol = parse_u16(value)?,
            SVC_ATTR_ADDR => addr = array(value)?,
            SVC_ATTR_PORT => service.port = parse_u16_be(value)?,
            SVC_ATTR_FWMARK => service.mark = parse_u32(value)?,
            SVC_ATTR_SCHED_NAME => service.scheduler = parse_string(value)?,
            // `struct ip_vs_flags`: the flags, and a mask.
            SVC_ATTR_FLAGS => service.flags = parse_u32(value.get(..4).unwrap_or_default())?,
            SVC_ATTR_TIMEOUT => service.persistence_seconds = parse_u32(value)?,
            SVC_ATTR_NETMASK => service.netmask = array(value)?,
            SVC_ATTR_PE_NAME => service.persistence_engine = Some(parse_string(value)?),
            _ => {}
        }
    }
    service.addr = addr_of(service.family, addr);
    Ok(service)
}

fn destination(attributes: &[u8]) -> Result<Destination, DecodeError> {
    let mut destination = Destination::default();
    // Kernels before 3.18 have no families; then it is the service's.
    let (mut addr, mut family) = ([0; ADDR_BYTES], None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            DEST_ATTR_ADDR => addr = array(value)?,
            DEST_ATTR_PORT => destination.port = parse_u16_be(value)?,
            DEST_ATTR_FWD_METHOD => destination.method = parse_u32(value)?,
            DEST_ATTR_WEIGHT => destination.weight = parse_u32(value)?,
            DEST_ATTR_U_THRESH => destination.upper_threshold = parse_u32(value)?,
            DEST_ATTR_L_THRESH => destination.lower_threshold = parse_u32(value)?,
            DEST_ATTR_ADDR_FAMILY => family = Some(parse_u16(value)?),
            DEST_ATTR_TUN_TYPE => destination.tunnel = parse_u8(value)?,
            DEST_ATTR_TUN_PORT => destination.tunnel_port = parse_u16_be(value)?,
            DEST_ATTR_TUN_FLAGS => destination.tunnel_flags = parse_u16(value)?,
            _ => {}
        }
    }
    let family = family.unwrap_or_else(|| if addr[4..] == [0; 12] { AF_INET } else { AF_INET6 });
    destination.addr = addr_of(family, addr);
    Ok(destination)
}

fn array<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| format!("an attribute of {} bytes instead of {N}", value.len()).into())
}

/// An address in the field that both families share.
fn addr_of(family: u16, bytes: [u8; ADDR_BYTES]) -> IpAddr {
    match (family, bytes) {
        (AF_INET6, bytes) => Ipv6Addr::from(bytes).into(),
        (_, [a, b, c, d, ..]) => Ipv4Addr::new(a, b, c, d).into(),
    }
}

const ADDR_BYTES: usize = 16;
/// Source: kernel `include/linux/socket.h`.
const AF_INET: u16 = 2;
pub(super) const AF_INET6: u16 = 10;

const CMD_NEW_SERVICE: u8 = 1;
const CMD_GET_SERVICE: u8 = 4;
const CMD_NEW_DEST: u8 = 5;
const CMD_GET_DEST: u8 = 8;
const CMD_SET_CONFIG: u8 = 12;
const CMD_GET_CONFIG: u8 = 13;

const CMD_ATTR_SERVICE: u16 = 1;
const CMD_ATTR_DEST: u16 = 2;
const CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const SVC_ATTR_AF: u16 = 1;
const SVC_ATTR_PROTOCOL: u16 = 2;
const SVC_ATTR_ADDR: u16 = 3;
const SVC_ATTR_PORT: u16 = 4;
const SVC_ATTR_FWMARK: u16 = 5;
const SVC_ATTR_SCHED_NAME: u16 = 6;
const SVC_ATTR_FLAGS: u16 = 7;
const SVC_ATTR_TIMEOUT: u16 = 8;
const SVC_ATTR_NETMASK: u16 = 9;
const SVC_ATTR_PE_NAME: u16 = 11;

const DEST_ATTR_ADDR: u16 = 1;
const DEST_ATTR_PORT: u16 = 2;
const DEST_ATTR_FWD_METHOD: u16 = 3;
const DEST_ATTR_WEIGHT: u16 = 4;
const DEST_ATTR_U_THRESH: u16 = 5;
const DEST_ATTR_L_THRESH: u16 = 6;
const DEST_ATTR_ADDR_FAMILY: u16 = 11;
const DEST_ATTR_TUN_TYPE: u16 = 13;
const DEST_ATTR_TUN_PORT: u16 = 14;
const DEST_ATTR_TUN_FLAGS: u16 = 15;
