//! Services as text: by the options of ipvsadm, and as listings print them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::{Family, Protocol};
use xvs_sched::ServiceKey;

/// The options that name a service, with numbers: `-t 192.0.2.1:80`.
pub fn named_service(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address { protocol, endpoint } => {
            let option = option_of(protocol);
            match endpoint.addr {
                IpAddr::V4(addr) => format!("{option} {addr}:{}", endpoint.port),
                IpAddr::V6(addr) => format!("{option} [{}]:{}", inet_ntop(addr), endpoint.port),
            }
        }
        // Unsigned: `-S` prints marks as signed numbers, and ipvsadm refuses negative ones.
        ServiceKey::Mark { mark, family } => {
            format!("-f {mark}{}", if family == Family::V6 { " -6" } else { "" })
        }
    }
}

/// The options that name a service, after a blank; empty without a service.
pub fn named(service: Option<ServiceKey>) -> String {
    service.map(|key| format!(" {}", named_service(&key))).unwrap_or_default()
}

/// The option for services with this protocol.
pub fn option_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::UDP => "-u",
        Protocol::SCTP => "--sctp-service",
        _ => "-t",
    }
}

/// An address as inet_ntop(3) prints it: the last 32 bits of an IPv4-compatible address are dotted decimal.
pub fn inet_ntop(addr: Ipv6Addr) -> String {
    match addr.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            format!("::{}", Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        _ => addr.to_string(),
    }
}

/// In JSON a service as listings print it.
pub(crate) mod as_listed {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use xvs_sched::ServiceKey;

    pub(crate) fn serialize<S: Serializer>(key: &ServiceKey, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ServiceKey, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}
