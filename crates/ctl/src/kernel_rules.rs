//! The rules of the kernel's IPVS as services of xvs.
//!
//! A service that xvs would not serve as the kernel does is left to the kernel, with the reason. Pure. Not here: the
//! reading of rules (`xvs_host::ipvs`), their coming into force (`control/follow_kernel.rs`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use xvs_host::ipvs;
use xvs_host::ipvs::Table;
use xvs_model::config::destination::{Destination, DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::service::{Netmask, SchedulerFlags, Service, ServiceOptions};
use xvs_model::config::timeouts::Timeouts;
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

/// The rules to put in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelRules {
    /// The services that xvs serves as the kernel does.
    pub services: BTreeMap<ServiceKey, Service>,
    /// The services that are left to the kernel, each with the reason and the next step.
    pub left: BTreeMap<ServiceKey, String>,
    /// The timeouts of connections.
    pub timeouts: Timeouts,
    /// The settings `net.ipv4.vs.*` that xvs has, by their names.
    pub settings: BTreeMap<String, String>,
}

impl KernelRules {
    /// The rules in a table and in the kernel's settings, which include [`CONNTRACK`].
    pub fn of(table: &Table, mut settings: BTreeMap<String, String>) -> Self {
        let ipvs::Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds } = table.timeouts;
        let has_conntrack = settings.remove(CONNTRACK).is_some_and(|value| value != "0");
        let mut rules = Self {
            timeouts: Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds },
            settings,
            ..Self::default()
        };
        for service in &table.services {
            let key = key_of(service);
            match service_of(service, has_conntrack) {
                Ok(service) => _ = rules.services.insert(key, service),
                Err(why) => _ = rules.left.insert(key, why),
            }
        }
        rules
    }
}

/// A setting of the kernel that xvs does not have: connections of IPVS are also those of conntrack.
pub const CONNTRACK: &str = "conntrack";

fn family_of(service: &ipvs::Service) -> Family {
    if service.is_ipv6() { Family::V6 } else { Family::V4 }
}

fn key_of(service: &ipvs::Service) -> ServiceKey {
    match service.mark {
        // The kernel has no other numbers than those of one byte.
        0 => ServiceKey::Address {
            protocol: Protocol(service.protocol as u8),
            endpoint: Endpoint::new(service.addr, service.port),
        },
        mark => ServiceKey::Mark { mark, family: family_of(service) },
    }
}

fn service_of(service: &ipvs::Service, has_conntrack: bool) -> Result<Service, String> {
    let family = family_of(service);
    let has_flag = |flag| service.flags & flag != 0;
    let options = ServiceOptions {
        scheduler: service.scheduler.clone(),
        flags: SchedulerFlags((service.flags >> SCHEDULER_FLAGS_SHIFT) as u8 & 0b111),
        persistence_timeout_seconds: has_flag(PERSISTENT).then_some(service.persistence_seconds),
        netmask: match family {
            Family::V4 => Netmask::V4(Ipv4Addr::from(service.netmask)),
            Family::V6 => Netmask::V6(u32::from_ne_bytes(service.netmask).min(128) as u8),
        },
        persistence_engine: service.persistence_engine.clone(),
        one_packet: has_flag(ONE_PACKET),
        ..ServiceOptions::of(family)
    };
    let destinations = service.destinations.iter().map(destination_of).collect::<Result<Vec<_>, _>>()?;
    if has_conntrack && destinations.iter().any(|dest| dest.options.method == ForwardingMethod::Nat) {
        return Err("net.ipv4.vs.conntrack is 1, so that netfilter may rewrite what NAT (-m) forwards, and xvs passes \
                    netfilter; `sysctl net.ipv4.vs.conntrack=0` if no rule does"
            .to_owned());
    }
    Ok(Service { options, destinations })
}

fn destination_of(destination: &ipvs::Destination) -> Result<Destination, String> {
    let endpoint = Endpoint::new(destination.addr, destination.port);
    let method = match destination.method {
        MASQUERADE => ForwardingMethod::Nat,
        TUNNEL => ForwardingMethod::Tunnel,
        DIRECT_ROUTE => ForwardingMethod::DirectRouting,
        other => {
            return Err(format!(
                "real server {endpoint} has the forwarding method {other}, which xvs has not"
            ));
        }
    };
    let checksum = match destination.tunnel_flags {
        flags if flags & CHECKSUM != 0 => TunnelChecksum::Full,
        flags if flags & REMOTE_CHECKSUM != 0 => TunnelChecksum::Remote,
        _ => TunnelChecksum::Without,
    };
    let tunnel = match (method, destination.tunnel) {
        (ForwardingMethod::Tunnel, TUNNEL_IPIP) => Tunnel::Ipip,
        (ForwardingMethod::Tunnel, TUNNEL_GUE) => Tunnel::Gue { port: destination.tunnel_port, checksum },
        (ForwardingMethod::Tunnel, TUNNEL_GRE) => Tunnel::Gre { checksum },
        (ForwardingMethod::Tunnel, other) => {
            return Err(format!("real server {endpoint} has the kind of tunnel {other}, which xvs has not"));
        }
        _ => Tunnel::Ipip,
    };
    let options = DestinationOptions {
        method,
        weight: Weight(destination.weight),
        upper_threshold: destination.upper_threshold,
        lower_threshold: destination.lower_threshold,
        tunnel,
    };
    Ok(Destination { endpoint, options })
}

// Source: kernel `include/uapi/linux/ip_vs.h`.
const PERSISTENT: u32 = 0x1;
const ONE_PACKET: u32 = 0x4;
const SCHEDULER_FLAGS_SHIFT: u32 = 3;
const MASQUERADE: u32 = 0;
const TUNNEL: u32 = 2;
const DIRECT_ROUTE: u32 = 3;
const TUNNEL_IPIP: u8 = 0;
const TUNNEL_GUE: u8 = 1;
const TUNNEL_GRE: u8 = 2;
const CHECKSUM: u16 = 1;
const REMOTE_CHECKSUM: u16 = 2;

#[cfg(test)]
mod tests {
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::difference::state_of;

    use super::*;

    /// The table that `xvs_host` reads in the messages of a kernel 6.1.
    fn recorded() -> Table {
        serde_json::from_str(include_str!("../../host/src/ipvs/table.json")).unwrap()
    }

    fn rules_of(table: &Table) -> KernelRules {
        KernelRules::of(table, BTreeMap::new())
    }

    #[test]
    fn each_kind_of_rule_is_the_one_that_ipvsadm_was_given() {
        let lines = include_str!("../../host/src/ipvs/rules");
        let wanted = read_rules(lines, &SystemResolver::default()).unwrap();
        let wanted = state_of(wanted.into_iter().map(|line| line.command)).unwrap();
        let rules = rules_of(&recorded());
        let services: BTreeMap<_, _> =
            wanted.services().map(|(key, service)| (*key, Service::clone(service))).collect();
        assert_eq!(rules.services, services);
        let timeouts = Timeouts { tcp_seconds: 901, tcp_fin_seconds: 121, udp_seconds: 301 };
        assert_eq!((rules.timeouts, rules.left), (timeouts, BTreeMap::new()));
    }

    #[test]
    fn a_service_with_a_method_or_a_tunnel_of_tomorrow_is_left_and_the_others_are_followed() {
        let table = recorded();
        let all = table.services.len();
        for (change, why) in [
            (
                (|dest| dest.method = 5) as fn(&mut ipvs::Destination),
                "the forwarding method 5, which xvs has not",
            ),
            (|dest| (dest.method, dest.tunnel) = (TUNNEL, 9), "the kind of tunnel 9, which xvs has not"),
        ] {
            let mut table = table.clone();
            change(&mut table.services[0].destinations[0]);
            let rules = rules_of(&table);
            assert_eq!((rules.services.len(), rules.left.len()), (all - 1, 1));
            let (key, text) = rules.left.first_key_value().unwrap();
            assert_eq!(*key, key_of(&table.services[0]));
            assert!(text.ends_with(why), "{text}");
        }
    }

    #[test]
    fn with_conntrack_only_services_with_nat_are_left() {
        let rules = KernelRules::of(&recorded(), [(CONNTRACK.to_owned(), "1".to_owned())].into());
        let left: Vec<_> = rules.left.keys().map(ToString::to_string).collect();
        assert_eq!(left, ["TCP 10.1.0.100:81", "UDP 10.1.0.100:53"]);
        assert!(rules.settings.is_empty(), "it is no setting of xvs");
    }
}
