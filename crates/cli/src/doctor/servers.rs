//! Checks of the paths to real servers (routes, neighbours, MTUs of tunnels), and of FULLNAT's local ports.

use std::collections::BTreeSet;
use std::net::IpAddr;

use xvs_ctl::registry::tunnels::encapsulation;
use xvs_dataplane::egress::{Egress, RouteTo};
use xvs_dataplane::forward::Ends;
use xvs_dataplane::{forward, snapshot};
use xvs_host::reserved_ports;
use xvs_model::config::destination::{Destination, DestinationOptions};
use xvs_model::config::service_option::named_service;
use xvs_model::objects::local::LocalAddress;
use xvs_proto::network::RouteKey;
use xvs_proto::{Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::doctor::addresses;
use crate::doctor::facts::{Facts, Service};
use crate::doctor::finding::Finding;

/// Whether each real server can be reached; one finding per address.
pub(super) fn routes(facts: &Facts) -> Vec<Finding> {
    let egress = Egress::build(&facts.network);
    let mut servers: Vec<_> = facts.servers().collect();
    servers.sort_by_key(|(_, server)| server.endpoint.addr);
    servers.dedup_by_key(|(_, server)| server.endpoint.addr);
    servers.into_iter().map(|(service, server)| route(facts, &egress, service, server)).collect()
}

fn route(facts: &Facts, egress: &Egress, service: &Service, server: &Destination) -> Finding {
    let Destination { endpoint, options: DestinationOptions { method, .. } } = *server;
    let addr = endpoint.addr;
    let subject = Finding::of("route", addr).seen("ip route");
    // The command that changes the forwarding method.
    let edit = format!("xvsadm -e {} -r {endpoint}", named_service(&service.key));
    let (link, next_hop) = match egress.route(key_to(facts, egress, addr), 0) {
        RouteTo::Local if matches!(method, ForwardingMethod::Nat | ForwardingMethod::FullNat) => {
            return subject
                .fail("it is the director itself, to which NAT cannot forward; -g delivers locally")
                .mend(edit + " -g");
        }
        RouteTo::Local => return subject.ok("it is the director itself"),
        // A further route would hide that of a routing daemon.
        RouteTo::Unreachable | RouteTo::NoRoute if facts.kernel_routes.contains(&addr) => {
            return subject.fail(format!(
                "xvs does not follow the kernel's route to it, so its packets are dropped as no_route; \
                     `xvs status` names what it does not follow, and `ip route get {addr}` prints the route: \
                     change it at its origin"
            ));
        }
        RouteTo::Unreachable | RouteTo::NoRoute => {
            return subject
                .fail("there is no route to it: its packets are dropped as no_route")
                .mend(new_route(facts, addr));
        }
        RouteTo::Via { link, next_hop } => (link, next_hop),
    };
    let name = egress.link(link).map_or("?", |info| &info.name);
    if !facts.is_attached(egress, link) {
        let found = format!(
            "its route is by {name}, to which xvsd is not attached, so it cannot send there: packets are \
             dropped as no_route"
        );
        let attachment = facts.attachment();
        let mut links = facts.network.links.iter();
        return match attachment.towards(addr).or_else(|| links.find(|one| one.id == link && one.resolves)) {
            // The kernel has a working route; a different route may not reach the real server.
            Some(link) => subject.fail(format!("{found}; {}", attachment.step(link))),
            None => subject.fail(found).mend(new_route(facts, addr)),
        };
    }
    if method == ForwardingMethod::DirectRouting && next_hop != addr {
        return subject
            .fail(format!(
                "direct routing needs the real server on the director's link, and {next_hop} on {name} is a \
                 router, which would route packets for the virtual address back; use a tunnel"
            ))
            .mend(edit + " -i");
    }
    match egress.neighbour(link, next_hop) {
        Some(mac) => {
            let via = if next_hop == addr { String::new() } else { format!(" via {next_hop}") };
            subject.seen("ip route, ip neigh").ok(format!("on {name}{via}, {mac}"))
        }
        None => Finding::of("neighbour", addr)
            .seen("ip neigh")
            .fail(format!(
                "{next_hop} on {name} does not answer ARP or neighbour discovery: packets to it are dropped \
                 as no_neighbour. Start the machine, or remove the real server until it runs"
            ))
            .mend(format!("xvsadm -d {} -r {endpoint}", named_service(&service.key))),
    }
}

/// The look-up key of the route for packets to a real server: in the first VRF of an examined interface, or outside
/// VRFs, that has a route through an examined interface.
fn key_to(facts: &Facts, egress: &Egress, addr: IpAddr) -> RouteKey {
    facts
        .links()
        .map(|link| link.vrf)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|vrf| RouteKey::from(addr).of_vrf(vrf))
        .find(|key| match egress.route(*key, 0) {
            RouteTo::Via { link, .. } => facts.is_attached(egress, link),
            RouteTo::Local => true,
            RouteTo::Unreachable | RouteTo::NoRoute => false,
        })
        .unwrap_or_else(|| addr.into())
}

/// The command that makes a route to a real server.
fn new_route(facts: &Facts, addr: IpAddr) -> String {
    // Only a host in the network of an attached interface is reached without a router.
    match addresses::beside(facts, addr) {
        Some(link) => format!("ip route replace {addr} dev {}", link.name),
        None => format!("ip route replace {addr} via ROUTER"),
    }
}

/// Whether clients' packets fit the tunnels to real servers.
pub(super) fn tunnels(facts: &Facts) -> Vec<Finding> {
    let egress = Egress::build(&facts.network);
    facts
        .servers()
        .filter(|(_, server)| server.options.method == ForwardingMethod::Tunnel)
        .filter_map(|(service, server)| room(facts, &egress, service, server))
        .collect()
}

fn room(facts: &Facts, egress: &Egress, service: &Service, server: &Destination) -> Option<Finding> {
    let addr = server.endpoint.addr;
    let key = key_to(facts, egress, addr);
    let RouteTo::Via { link, .. } = egress.route(key, 0) else { return None };
    let of_link = egress.mtu(key, link)?;
    let name = &egress.link(link)?.name;
    let learnt = facts
        .daemon
        .iter()
        .filter_map(|daemon| daemon.path_mtus.get(&addr))
        .chain(facts.kernel_mtus.get(&addr))
        .copied()
        .filter(|mtu| *mtu < of_link)
        .min();
    let overhead = overhead(server);
    let room = learnt.unwrap_or(of_link).saturating_sub(overhead);
    let clients = clients_mtu(facts, service)?;
    let smallest = match learnt {
        Some(mtu) => format!("the path takes {mtu} bytes"),
        None => format!("{name} takes {of_link} bytes"),
    };
    let fits = format!("{smallest}, {overhead} of them for the tunnel; clients send up to {clients}");
    let mtu = Finding::of("mtu", format!("{} to {}", service.key, server.endpoint))
        .seen("ip link, ip route get, path MTUs of xvsd");
    // Without a daemon, the default.
    let clamp = facts.daemon.as_ref().map_or("tunnels", |daemon| &daemon.mss_clamp);
    let tcp = matches!(service.key, ServiceKey::Address { protocol: Protocol::TCP, .. });
    Some(if clients <= room {
        mtu.ok(fits)
    } else if tcp && clamp != "off" {
        mtu.ok(format!(
            "{fits}; mss_clamp {clamp} lowers the MSS of SYNs; where the SYN+ACK does not pass the director, \
             clients learn it by ICMP errors, or from the `advmss` that `xvs realserver up` prints"
        ))
    } else if tcp {
        mtu.warn(format!(
            "{fits}, and mss_clamp is off: larger packets depend on ICMP errors, which may not arrive"
        ))
        .mend("xvs set mss_clamp tunnels")
    } else {
        let finding =
            mtu.warn(format!("{fits}: larger datagrams are fragmented, or refused if they forbid it"));
        match clients + overhead {
            // All links on the path must carry packets of this size.
            wanted if learnt.is_none() && facts.mtu_limit.is_none_or(|limit| wanted <= limit) => {
                finding.mend(format!("ip link set dev {name} mtu {wanted}"))
            }
            _ => finding,
        }
    })
}

/// The length of a tunnel's outer headers, in bytes.
fn overhead(server: &Destination) -> u32 {
    let Destination { endpoint, options: DestinationOptions { method, tunnel, .. } } = *server;
    let ends = Ends { client: endpoint, virtual_endpoint: endpoint, dest: endpoint, local: None, method };
    forward::overhead(&ends, snapshot::Tunnel { source: None, encapsulation: encapsulation(tunnel) })
}

/// The largest packet that clients send to a service, in bytes: the MTU of the link with the service's address,
/// otherwise the largest MTU of an attached link.
fn clients_mtu(facts: &Facts, service: &Service) -> Option<u32> {
    if let ServiceKey::Address { endpoint, .. } = service.key
        && let Some(holder) = facts.holder(endpoint.addr).filter(|link| facts.names(&link.name))
    {
        return Some(holder.mtu);
    }
    facts.links().map(|link| link.mtu).max()
}

/// Whether the ports of FULLNAT's local addresses are reserved in the kernel, where the kernel has the address too.
pub(super) fn ports(facts: &Facts) -> Vec<Finding> {
    let [own, reserved] =
        [OWN, RESERVED].map(|path| facts.settings.get(path).map_or("", |value| value.trim()));
    let Some((first_own, last_own)) = reserved_ports::pair(own, char::is_whitespace) else {
        return Vec::new();
    };
    let ranges = reserved_ports::ranges(reserved);
    let mut findings = Vec::new();
    for local in facts.locals.iter().filter(|local| facts.holder(local.addr).is_some()) {
        let clash = local
            .ports()
            .filter(|port| (first_own..=last_own).contains(port))
            .filter(|port| !ranges.iter().any(|(first, last)| (first..=last).contains(&port)))
            .count();
        let LocalAddress { first_port: first, last_port: last, .. } = local;
        let ports = Finding::of("ports", local.addr).seen(format!("/proc/sys/{RESERVED}"));
        findings.push(if clash == 0 {
            ports.ok(format!("the kernel uses none of {first}-{last} for its own connections"))
        } else {
            let before = if reserved.is_empty() { String::new() } else { format!("{reserved},") };
            ports
                .warn(format!(
                    "the kernel may use {clash} of its ports {first}-{last} for its own connections, and \
                     their replies then go to xvsd"
                ))
                .mend(format!("sysctl -w net.ipv4.ip_local_reserved_ports={before}{first}-{last}"))
        });
    }
    findings
}

/// Whether FULLNAT has local addresses, and the kernel has them. For configuration files: an xvsd warns itself.
pub(super) fn local_addresses(facts: &Facts) -> Vec<Finding> {
    if facts.daemon.is_some() {
        return Vec::new();
    }
    let egress = Egress::build(&facts.network);
    let own: Vec<_> = facts.locals.iter().filter(|local| !local.standby).collect();
    let mut findings = Vec::new();
    for (service, server) in facts.servers() {
        let family = server.endpoint.family();
        if server.options.method != ForwardingMethod::FullNat
            || own.iter().any(|local| Family::of(local.addr) == family)
        {
            continue;
        }
        let usable = egress
            .source_of_family(server.endpoint.addr, family, |addr| {
                facts.services.iter().any(|service| {
                    matches!(service.key, ServiceKey::Address { endpoint, .. } if endpoint.addr == addr)
                })
            })
            .map_or_else(|| "ADDRESS".to_owned(), |addr| addr.to_string());
        findings.push(Finding::of(LOCAL, service.key).fail(format!(
            "its real servers by FULLNAT need a local address, and there is none: clients get no answer; \
             give the rules the line `#xvs laddr add {usable}`"
        )));
    }
    findings.dedup_by(|one, other| one.object == other.object);
    for local in own.iter().filter(|local| facts.holder(local.addr).is_none()) {
        findings.push(Finding::of(LOCAL, local.addr).seen("ip address").warn(
            "no interface has it, so replies of real servers by FULLNAT do not reach this machine \
                     unless it is routed here",
        ));
    }
    findings
}

/// The next hops of all real servers, each with the index of its link.
pub(super) fn next_hops(facts: &Facts) -> Vec<(u32, IpAddr)> {
    let egress = Egress::build(&facts.network);
    facts
        .servers()
        .filter_map(|(_, server)| match egress.route(key_to(facts, &egress, server.endpoint.addr), 0) {
            RouteTo::Via { link, next_hop } => Some((egress.link(link)?.ifindex, next_hop)),
            _ => None,
        })
        .collect()
}

/// The networks of real servers by NAT, whose hosts they answer directly: also each other.
pub(super) fn neighbours(facts: &Facts) -> Vec<Finding> {
    facts
        .servers()
        .filter(|(_, server)| server.options.method == ForwardingMethod::Nat)
        .filter_map(|(_, server)| {
            facts.links().find_map(|link| addresses::network_of(link, server.endpoint.addr))
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|network| {
            Finding::of("clients", network).ok(
                "a host of this network, also a real server, cannot be a client of a service by NAT whose \
                 real servers are in it, because they answer it directly (unless they route this network by \
                 the director); use FULLNAT for it",
            )
        })
        .collect()
}

const LOCAL: &str = "local address";
pub(super) const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
pub(super) const OWN: &str = "net/ipv4/ip_local_port_range";

#[cfg(test)]
mod tests {
    use crate::doctor::facts::tests::{facts, only, serve, web, with_daemon};
    use crate::doctor::finding::Level;
    use crate::doctor::servers::*;

    #[test]
    fn fullnat_without_a_local_address_fails_with_the_line_to_add_and_one_that_no_interface_has_is_a_warning()
    {
        let mut facts = serve(facts(), web(), ForwardingMethod::FullNat);
        let lacking = only(local_addresses(&facts));
        assert_eq!((lacking.level, &*lacking.object), (Level::Fail, "TCP 198.51.100.100:80"));
        assert!(lacking.found.ends_with("`#xvs laddr add 192.0.2.1`"), "{}", lacking.found);
        for (addr, findings) in [("192.0.2.1", 0), ("8.8.8.8", 1)] {
            let (addr, first_port, last_port) = (addr.parse().unwrap(), 1024, 2047);
            facts.locals = vec![LocalAddress { addr, first_port, last_port, standby: false }];
            let found = local_addresses(&facts);
            assert_eq!(found.len(), findings, "{found:?}");
            assert!(found.iter().all(|finding| finding.level == Level::Warn && finding.object == "8.8.8.8"));
        }
    }

    #[test]
    fn networks_of_real_servers_by_nat_are_named_because_their_hosts_cannot_be_clients() {
        for (method, networks) in
            [(ForwardingMethod::Nat, &["192.0.2.0/24"][..]), (ForwardingMethod::FullNat, &[])]
        {
            let mut facts = serve(facts(), web(), method);
            let another = facts.services[0].servers[0].clone();
            facts.services[0].servers.push(another);
            let found = neighbours(&facts);
            assert_eq!(found.iter().map(|finding| &*finding.object).collect::<Vec<_>>(), networks);
            assert!(
                found.iter().all(|finding| finding.level == Level::Ok && finding.found.contains("FULLNAT"))
            );
        }
    }

    fn level_check_mend(finding: &Finding) -> (Level, &'static str, &str) {
        (finding.level, finding.check, finding.mend.as_ref().map_or("", |mend| &mend.command))
    }

    /// The finding about a real server with forwarding method `method`, after `change`.
    fn judged(method: ForwardingMethod, change: impl FnOnce(&mut Facts)) -> Finding {
        let mut facts = serve(facts(), web(), method);
        change(&mut facts);
        only(routes(&facts))
    }

    fn moved(facts: &mut Facts, to: &str) {
        facts.services[0].servers[0].endpoint.addr = to.parse().unwrap();
    }

    #[test]
    fn a_real_server_needs_a_route_on_an_attached_interface_and_a_resolved_neighbour() {
        let nat = ForwardingMethod::Nat;
        assert_eq!(judged(nat, |_| {}).level, Level::Ok);
        let finding = judged(nat, |facts| facts.network.neighbours.clear());
        let gone = "xvsadm -d -t 198.51.100.100:80 -r 192.0.2.11:80";
        assert_eq!(level_check_mend(&finding), (Level::Fail, "neighbour", gone));
        let finding = judged(nat, |facts| moved(facts, "203.0.113.10"));
        assert_eq!(
            level_check_mend(&finding),
            (Level::Fail, "route", "ip route replace 203.0.113.10 via ROUTER")
        );
        let finding = judged(nat, |facts| {
            let addr = facts.services[0].servers[0].endpoint.addr;
            facts.network.routes.retain(|route| !route.dest.contains(addr));
        });
        assert_eq!(
            level_check_mend(&finding),
            (Level::Fail, "route", "ip route replace 192.0.2.11 dev lan"),
            "it is in the network of lan"
        );
        let finding = judged(nat, |facts| {
            moved(facts, "203.0.113.10");
            facts.kernel_routes.insert("203.0.113.10".parse().unwrap());
        });
        assert_eq!(level_check_mend(&finding), (Level::Fail, "route", ""), "the kernel has a route");
        let finding = judged(nat, |facts| {
            let dmz = [("203.0.113.1".parse().unwrap(), 24)];
            facts.network.add_link("dmz", "02:00:00:00:00:02".parse().unwrap(), &dmz, 1500).unwrap();
            moved(facts, "203.0.113.10");
        });
        assert_eq!(level_check_mend(&finding), (Level::Fail, "route", ""), "the kernel's route is right");
        assert!(finding.found.contains("--interface dmz"), "{finding}");
        let finding = judged(nat, |facts| {
            facts.network.add_link("lo", "00:00:00:00:00:00".parse().unwrap(), &[], 65536).unwrap();
            facts.network.add_route("192.0.2.11/32".parse().unwrap(), None, "lo").unwrap();
        });
        assert_eq!(
            level_check_mend(&finding),
            (Level::Fail, "route", "ip route replace 192.0.2.11 dev lan"),
            "nobody is behind loopback"
        );
    }

    #[test]
    fn a_real_server_on_a_vlan_over_an_attached_interface_is_reachable() {
        let finding = judged(ForwardingMethod::Nat, |facts| {
            let addresses = [("203.0.113.1".parse().unwrap(), 24)];
            facts.network.add_link("lan.5", "02:00:00:00:00:01".parse().unwrap(), &addresses, 1500).unwrap();
            facts.network.make_vlan("lan.5", 5, "lan").unwrap();
            let [addr, mac] = ["203.0.113.10", "02:00:00:00:00:12"];
            facts.network.add_neighbour(addr.parse().unwrap(), mac.parse().unwrap(), "lan.5").unwrap();
            moved(facts, addr);
        });
        assert_eq!(finding.level, Level::Ok, "{finding}");
    }

    #[test]
    fn a_method_that_cannot_reach_the_server_is_reported_with_one_that_can() {
        let behind = |facts: &mut Facts| {
            facts
                .network
                .add_route("203.0.113.0/24".parse().unwrap(), "192.0.2.11".parse().ok(), "lan")
                .unwrap();
            moved(facts, "203.0.113.10");
        };
        let finding = judged(ForwardingMethod::DirectRouting, behind);
        let tunnel = "xvsadm -e -t 198.51.100.100:80 -r 203.0.113.10:80 -i";
        assert_eq!(level_check_mend(&finding), (Level::Fail, "route", tunnel));
        assert_eq!(judged(ForwardingMethod::Tunnel, behind).level, Level::Ok);
        let itself = |facts: &mut Facts| moved(facts, "192.0.2.1");
        let finding = judged(ForwardingMethod::Nat, itself);
        assert_eq!(
            level_check_mend(&finding),
            (Level::Fail, "route", "xvsadm -e -t 198.51.100.100:80 -r 192.0.2.1:80 -g")
        );
        assert_eq!(judged(ForwardingMethod::DirectRouting, itself).level, Level::Ok);
    }

    #[test]
    fn packets_that_exceed_a_tunnel_are_a_warning_unless_the_mss_of_tcp_is_clamped() {
        let of = |key, clamp: &str, mtu: u32, learnt: Option<u32>| {
            let mut facts = serve(with_daemon(), key, ForwardingMethod::Tunnel);
            facts.network.links[1].mtu = mtu;
            let daemon = facts.daemon.as_mut().unwrap();
            daemon.mss_clamp = clamp.to_owned();
            let server = facts.services[0].servers[0].endpoint.addr;
            daemon.path_mtus.extend(learnt.map(|mtu| (server, mtu)));
            let finding = only(tunnels(&facts));
            let (level, _, mend) = level_check_mend(&finding);
            (level, mend.to_owned())
        };
        let udp = ServiceKey::udp(xvs_proto::Endpoint::new([198, 51, 100, 100], 53));
        let none = String::new();
        assert_eq!(of(web(), "tunnels", 1500, None), (Level::Ok, none.clone()));
        assert_eq!(of(web(), "off", 1500, None), (Level::Warn, "xvs set mss_clamp tunnels".to_owned()));
        assert_eq!(of(web(), "off", 1520, None), (Level::Ok, none.clone()));
        assert_eq!(of(web(), "off", 1520, Some(1400)), (Level::Warn, "xvs set mss_clamp tunnels".to_owned()));
        assert_eq!(of(udp, "tunnels", 1500, None), (Level::Warn, "ip link set dev lan mtu 1520".to_owned()));
        assert_eq!(
            of(udp, "tunnels", 1520, Some(1519)),
            (Level::Warn, none.clone()),
            "no command can change the path"
        );
        assert_eq!(of(udp, "tunnels", 1520, Some(9000)), (Level::Ok, none));
    }

    #[test]
    fn ports_that_the_kernel_may_also_use_are_reported_with_the_command_that_reserves_them() {
        let mut facts = facts();
        facts.settings.insert(OWN.to_owned(), "32768\t60999\n".to_owned());
        facts.settings.insert(RESERVED.to_owned(), "\n".to_owned());
        let addr = "192.0.2.1".parse().unwrap();
        facts.locals = vec![LocalAddress { addr, first_port: 1024, last_port: 32_767, standby: false }];
        assert_eq!(only(ports(&facts)).level, Level::Ok);
        facts.locals[0].last_port = 40_000;
        let reserve = "sysctl -w net.ipv4.ip_local_reserved_ports=1024-40000";
        assert_eq!(level_check_mend(&only(ports(&facts))), (Level::Warn, "ports", reserve));
        facts.settings.insert(RESERVED.to_owned(), "80,1024-40000\n".to_owned());
        assert_eq!(only(ports(&facts)).level, Level::Ok);
        facts.locals[0].addr = "192.0.2.99".parse().unwrap();
        assert_eq!(ports(&facts), [], "the director does not have the address");
    }
}
