//! Reads nexthop objects (`ip nexthop`), to which the routes of routing daemons refer by id.
//!
//! A route with an object has no next hop of its own with `net.ipv4.nexthop_compat_mode=0`, and otherwise a multipath
//! copy with eight-bit weights, so only the objects determine where its packets go. If the members of a group change,
//! the kernel announces the objects and not the routes. Resilient groups are treated as groups by weight. Cost: one
//! dump for each reading of the routes.
//!
//! Source: kernel `include/uapi/linux/nexthop.h`, from which the constants are.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator, parse_u32,
};
use xvs_proto::network::NextHop;

use crate::network::netlink::Netlink;

/// The nexthop objects, by their ids.
#[derive(Debug, Default)]
pub(super) struct Nexthops(BTreeMap<u32, Nexthop>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Nexthop {
    Single(NextHop),
    /// The ids and weights of the group's members.
    Group(Vec<(u32, u32)>),
    Encapsulated,
    /// A blackhole, or dead.
    Unusable,
}

impl Nexthops {
    pub(super) fn read(netlink: &mut Netlink) -> io::Result<Self> {
        let mut objects = BTreeMap::new();
        for reply in netlink.dump(Message::Get)? {
            if let Message::New(id, nexthop) = reply {
                objects.insert(id, nexthop);
            }
        }
        Ok(Self(objects))
    }

    /// The next hops of a route with the object `id`; an error ends the sentence "the route to PREFIX …".
    pub(super) fn hops(&self, id: u32) -> Result<Vec<NextHop>, String> {
        let members = match self.0.get(&id) {
            None => return Err(format!("by the unknown nexthop object {id}")),
            Some(Nexthop::Group(members)) => members.as_slice(),
            Some(_) => &[(id, 1)],
        };
        let mut hops = Vec::with_capacity(members.len());
        for (member, weight) in members {
            match self.0.get(member) {
                Some(Nexthop::Single(hop)) => hops.push(NextHop { weight: *weight, ..*hop }),
                Some(Nexthop::Encapsulated) => {
                    return Err(format!("by nexthop object {member} with an encapsulation"));
                }
                // The kernel has no groups of groups, and removes a member before its object.
                Some(Nexthop::Group(_) | Nexthop::Unusable) | None => {}
            }
        }
        Ok(hops)
    }
}

/// A message about nexthop objects.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    /// The request for all of them.
    Get,
    /// One, with its id.
    New(u32, Nexthop),
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::Get => RTM_GETNEXTHOP,
            Self::New(..) => RTM_NEWNEXTHOP,
        }
    }

    fn buffer_len(&self) -> usize {
        HEADER_BYTES
    }

    /// Only requests are sent; all fields of their header are 0.
    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let Some((header, attributes)) = payload.split_at_checked(HEADER_BYTES) else {
            return Err("a message about a nexthop object is shorter than its header".into());
        };
        let flags = parse_u32(&header[4..])?;
        let (mut id, mut ifindex, mut via, mut group) = (0, None, None, None);
        let (mut weights_are_wide, mut encapsulated) = (false, false);
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                NHA_ID => id = parse_u32(attribute.value())?,
                NHA_GROUP => group = Some(attribute.value().to_vec()),
                NHA_OIF => ifindex = Some(parse_u32(attribute.value())?),
                NHA_GATEWAY => via = addr(attribute.value()),
                NHA_ENCAP_TYPE => encapsulated = true,
                NHA_OP_FLAGS => {
                    weights_are_wide = parse_u32(attribute.value())? & NHA_OP_FLAG_RESP_GRP_RESVD_0 != 0;
                }
                _ => {}
            }
        }
        let nexthop = match (group, ifindex) {
            (Some(group), _) => Nexthop::Group(members(&group, weights_are_wide)),
            _ if encapsulated => Nexthop::Encapsulated,
            (None, Some(ifindex)) if flags & RTNH_F_DEAD == 0 => {
                Nexthop::Single(NextHop { ifindex, via, weight: 1 })
            }
            _ => Nexthop::Unusable,
        };
        Ok(Self::New(id, nexthop))
    }
}

/// The ids and weights in the records of a group (`struct nexthop_grp`: id, weight minus one, its upper byte, two
/// bytes). Kernels before 6.12 have no upper byte, and may leave other bytes there.
fn members(group: &[u8], weights_are_wide: bool) -> Vec<(u32, u32)> {
    let (records, _) = group.as_chunks::<8>();
    records
        .iter()
        .map(|&[a, b, c, d, low, high, ..]| {
            let high = if weights_are_wide { high } else { 0 };
            (u32::from_ne_bytes([a, b, c, d]), u32::from(u16::from_le_bytes([low, high])) + 1)
        })
        .collect()
}

fn addr(bytes: &[u8]) -> Option<IpAddr> {
    bytes
        .try_into()
        .map(|bytes: [u8; 4]| IpAddr::V4(Ipv4Addr::from(bytes)))
        .or_else(|_| bytes.try_into().map(|bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes))))
        .ok()
}

/// `struct nhmsg`: family, scope, protocol, a reserved byte, flags.
const HEADER_BYTES: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_OP_FLAGS: u16 = 14;

/// In replies: the upper bytes of weights are valid.
const NHA_OP_FLAG_RESP_GRP_RESVD_0: u32 = 1 << 31;

/// `include/uapi/linux/rtnetlink.h`.
const RTNH_F_DEAD: u32 = 1;
pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;

#[cfg(test)]
mod tests {
    use crate::network::nexthops::*;

    /// The object in a payload that Linux 6.18 sent for `ip nexthop add …`, in hexadecimal digits.
    fn object(payload: &str) -> (u32, Nexthop) {
        let digits = payload.split_whitespace().collect::<String>();
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        match Message::deserialize(&NetlinkHeader::default(), &bytes).unwrap() {
            Message::New(id, nexthop) => (id, nexthop),
            Message::Get => panic!("a reply is no request"),
        }
    }

    const VIA_WAN: &str = "02fd0000 00000000 08000100 01000000 08000500 03000000 08000600 0a000007";
    const VIA_INET6: &str =
        "0afd0000 00000000 08000100 0c000000 08000500 03000000 14000600 fe800000 00000000 00000000 00000009";
    const ON_LINK: &str = "02fe0000 00000000 08000100 13000000 08000500 05000000";
    const BLACKHOLE: &str = "02000000 00000000 08000100 0d000000 04000400";
    const ENCAPSULATED: &str =
        "02fd0000 00000000 08000100 14000000 08000500 03000000 08000600 0a000007 06000700 02000000";
    /// `group 1,3/19`.
    const GROUP: &str =
        "00000000 00000000 08000100 0a000000 06000300 00000000 14000200 01000000 02000000 13000000 00000000";

    fn hop(ifindex: u32, via: Option<&str>, weight: u32) -> NextHop {
        NextHop { ifindex, via: via.map(|via| via.parse().unwrap()), weight }
    }

    #[test]
    fn the_hops_of_an_object_are_its_own_or_those_of_its_members_with_their_weights() {
        let objects = [VIA_WAN, VIA_INET6, ON_LINK, BLACKHOLE, GROUP].map(object);
        let nexthops = Nexthops(objects.into());
        assert_eq!(nexthops.hops(1), Ok(vec![hop(3, Some("10.0.0.7"), 1)]));
        assert_eq!(nexthops.hops(12), Ok(vec![hop(3, Some("fe80::9"), 1)]));
        assert_eq!(nexthops.hops(19), Ok(vec![hop(5, None, 1)]));
        assert_eq!(nexthops.hops(13), Ok(vec![]));
        assert_eq!(nexthops.hops(10), Ok(vec![hop(3, Some("10.0.0.7"), 3), hop(5, None, 1)]));
    }

    #[test]
    fn routes_by_an_encapsulation_and_by_an_unknown_object_are_named() {
        let mut nexthops = Nexthops([VIA_WAN, ENCAPSULATED].map(object).into());
        nexthops.0.insert(21, Nexthop::Group(vec![(1, 1), (20, 1)]));
        assert_eq!(nexthops.hops(21), Err("by nexthop object 20 with an encapsulation".to_owned()));
        assert_eq!(nexthops.hops(22), Err("by the unknown nexthop object 22".to_owned()));
    }

    #[test]
    fn the_upper_byte_of_a_weight_is_read_only_if_the_kernel_says_that_it_is_valid() {
        let (_, from_old_kernel) = object(&GROUP.replace("02000000 13", "02010000 13"));
        assert_eq!(from_old_kernel, Nexthop::Group(vec![(1, 3), (19, 1)]));
        let (_, from_new_kernel) =
            object(&format!("{} 08000e00 00000080", GROUP.replace("02000000 13", "02010000 13")));
        assert_eq!(from_new_kernel, Nexthop::Group(vec![(1, 259), (19, 1)]));
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error() {
        assert!(Message::deserialize(&NetlinkHeader::default(), &[0; 7]).is_err());
    }
}
