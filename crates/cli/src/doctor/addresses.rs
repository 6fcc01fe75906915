//! Checks of virtual addresses: their link, this machine's ARP replies for them, and the kernel's settings for them.
//!
//! Other machines that answer are found by `arp.rs`.

use std::net::IpAddr;

use xvs_ctl::bonds::bond_of;
use xvs_ctl::unattached::Attachment;
use xvs_proto::Prefix;
use xvs_proto::network::{Link, Network, RouteAction, Table};
use xvs_sched::ForwardingMethod;

use crate::doctor::arp::ARP;
use crate::doctor::facts::{Answer, Facts, conf};
use crate::doctor::finding::Finding;

/// Whether the director has each virtual address, and is attached where its clients come in.
pub(super) fn present(facts: &Facts) -> Vec<Finding> {
    let attachment = facts.attachment();
    facts.virtual_addresses().into_iter().map(|vip| presence(facts, &attachment, vip)).collect()
}

fn presence(facts: &Facts, attachment: &Attachment<'_>, vip: IpAddr) -> Finding {
    let address = Finding::of("address", vip).seen("ip address");
    if let Some(link) = attachment.towards_clients(vip) {
        return address.fail(format!(
            "its clients come in by {}, to which xvsd is not attached, so their packets go to the \
                 kernel; {}",
            link.name,
            attachment.step(link)
        ));
    }
    if let Some(link) = facts.holder(vip) {
        return address.ok(format!("{} has it", link.name));
    }
    if let Some(Answer { link, mac, .. }) = facts.answers.iter().find(|answer| answer.addr == vip) {
        return address.seen(format!("ip address; ARP probes on {link}")).warn(format!(
            "no interface has it, and {mac} answers ARP for it on {link}; correct only if that is the \
                 other director of a pair, which has it at the moment"
        ));
    }
    let beside = beside(facts, vip);
    let finding = match beside {
        Some(link) => address.fail(format!(
            "no interface has it, and no other machine answers for it to clients on {}",
            link.name
        )),
        None => {
            address.warn("no interface has it; correct only if routers have a route for it to this machine")
        }
    };
    let dev = beside.or_else(|| towards_clients(facts)).map_or("eth0", |link| &link.name);
    finding.mend(match vip {
        IpAddr::V4(_) => format!("ip address add {vip}/32 dev {dev}"),
        // During duplicate address detection, the kernel does not answer for an IPv6 address.
        IpAddr::V6(_) => format!("ip address add {vip}/128 dev {dev} nodad"),
    })
}

/// The attached link whose network contains an address.
pub(super) fn beside(facts: &Facts, vip: IpAddr) -> Option<&Link> {
    facts.links().find(|link| network_of(link, vip).is_some())
}

/// The network of a link that contains an address.
pub(super) fn network_of(link: &Link, addr: IpAddr) -> Option<Prefix> {
    link.addresses
        .iter()
        .filter_map(|&(own, len)| Prefix::new(own, len))
        .find(|network| network.contains(addr))
}

/// The attached link most likely to receive clients' packets: the link of the default route, otherwise the first one.
fn towards_clients(facts: &Facts) -> Option<&Link> {
    default_link(&facts.network).filter(|link| facts.names(&link.name)).or_else(|| {
        let link = facts.network.link_named(&facts.interfaces.first()?.name)?;
        Some(bond_of(link, &facts.network.links).unwrap_or(link))
    })
}

/// The link of the default route of IPv4.
fn default_link(network: &Network) -> Option<&Link> {
    let route = network
        .routes
        .iter()
        .filter(|route| route.table == Table::MAIN && route.dest.is_default() && route.dest.addr().is_ipv4())
        .min_by_key(|route| route.metric)?;
    let RouteAction::Unicast(hops) = &route.action else { return None };
    let ifindex = hops.first()?.ifindex;
    network.links.iter().find(|link| link.ifindex == ifindex)
}

/// Whether the kernel answers ARP for virtual addresses that are on another interface than the one of the request.
pub(super) fn answered_by_the_director(facts: &Facts) -> Vec<Finding> {
    facts.virtual_addresses().into_iter().filter_map(|vip| own_answer(facts, vip)).collect()
}

fn own_answer(facts: &Facts, vip: IpAddr) -> Option<Finding> {
    let holder = facts.holder(vip).filter(|link| vip.is_ipv4() && !facts.names(&link.name))?;
    let link = beside(facts, vip).or_else(|| towards_clients(facts))?;
    let arp = Finding::of(ARP, vip).seen(format!("/proc/sys/{}", conf(&link.name, IGNORE)));
    Some(match facts.highest(&link.name, IGNORE) {
        0 => arp.ok(format!("{} has it, and {} answers ARP for it", holder.name, link.name)),
        silent => arp
            .fail(format!(
                "{} has it, and with arp_ignore {silent} the kernel does not answer for it on {}; so clients \
                 and routers there cannot resolve it",
                holder.name, link.name
            ))
            .mend(format!("ip address add {vip}/32 dev {}", link.name)),
    })
}

/// Whether the kernel forwards packets that NAT real servers send on their own connections.
pub(super) fn forwarding(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (v4, path) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        if !nat_servers(facts).any(|addr| addr.is_ipv4() == v4) {
            continue;
        }
        let name = path.replace('/', ".");
        let forwarding = Finding::of("forwarding", "").seen(format!("/proc/sys/{path}"));
        findings.push(if facts.setting(path) == 0 {
            forwarding
                .warn(format!(
                    "{name} is 0: NAT real servers cannot open connections themselves (DNS, updates); \
                     services work"
                ))
                .mend(format!("sysctl -w {name}=1"))
        } else {
            forwarding.ok(format!("{name} is 1"))
        });
    }
    findings
}

/// Whether the kernel would redirect NAT real servers to a route past the director.
pub(super) fn redirects(facts: &Facts) -> Vec<Finding> {
    if facts.setting("net/ipv4/ip_forward") == 0 {
        return Vec::new();
    }
    facts.links().filter_map(|link| redirects_on(facts, link)).collect()
}

fn redirects_on(facts: &Facts, link: &Link) -> Option<Finding> {
    let is_of_link = |addr: IpAddr| addr.is_ipv4() && network_of(link, addr).is_some();
    // Whether clients' packets arrive on the same link: their router or their network is there.
    let clients = default_link(&facts.network).is_some_and(|default| default.ifindex == link.ifindex)
        || facts.virtual_addresses().into_iter().any(is_of_link);
    if !clients || !nat_servers(facts).any(is_of_link) {
        return None;
    }
    // Redirects are sent if either setting is 1 (kernel ip-sysctl.rst, send_redirects).
    let [all, own] = ["all", &link.name].map(|name| facts.setting(&conf(name, REDIRECTS)));
    let subject =
        Finding::of("redirects", &link.name).seen(format!("/proc/sys/{}", conf(&link.name, REDIRECTS)));
    Some(if all + own == 0 {
        subject.ok("the kernel sends no ICMP redirects")
    } else {
        let [all, own] =
            ["all", &link.name].map(|name| format!("net.ipv4.conf.{}.{REDIRECTS}=0", sysctl(name)));
        subject
            .warn(
                "clients and real servers are on one link, and the kernel may redirect real servers past the \
                 director: then their replies are not translated",
            )
            .mend(format!("sysctl -w {all} {own}"))
    })
}

/// Whether the kernel drops packets that arrive on another link than that of the route to their source.
pub(super) fn source_check(facts: &Facts) -> Vec<Finding> {
    let Some(default) = default_link(&facts.network) else { return Vec::new() };
    facts.links().filter_map(|link| source_check_on(facts, default, link)).collect()
}

fn source_check_on(facts: &Facts, default: &Link, link: &Link) -> Option<Finding> {
    let vips = facts.virtual_addresses();
    if !link.addresses.iter().any(|(addr, _)| addr.is_ipv4() && vips.contains(addr)) {
        return None;
    }
    let name = &link.name;
    let subject = Finding::of("source check", name).seen(format!("/proc/sys/{}", conf(name, SOURCE)));
    Some(match facts.highest(name, SOURCE) {
        STRICT if default.ifindex != link.ifindex => subject
            .warn(format!(
                "rp_filter is strict and the default route is on {}: the kernel drops clients' packets that \
                 it receives on {name}, such as pings of the virtual address and packets that xvsd passes to \
                 it",
                default.name
            ))
            .mend(format!("sysctl -w net.ipv4.conf.{}.{SOURCE}=2", sysctl(name))),
        check => subject.ok(format!("rp_filter {check} is compatible with the routes")),
    })
}

fn nat_servers(facts: &Facts) -> impl Iterator<Item = IpAddr> {
    facts
        .servers()
        .filter(|(_, server)| server.options.method == ForwardingMethod::Nat)
        .map(|(_, server)| server.endpoint.addr)
}

/// A name as a component of a dotted sysctl(8) name, in which a slash stands for a dot.
fn sysctl(name: &str) -> String {
    name.replace('.', "/")
}

pub(super) const IGNORE: &str = "arp_ignore";
pub(super) const REDIRECTS: &str = "send_redirects";
pub(super) const SOURCE: &str = "rp_filter";
const STRICT: u32 = 1;

#[cfg(test)]
mod tests {
    use crate::doctor::addresses::*;
    use crate::doctor::arp::answered_by_others;
    use crate::doctor::facts::tests::{facts, only, serve, web};
    use crate::doctor::finding::Level;

    fn command(finding: &Finding) -> &str {
        finding.mend.as_ref().map_or("", |mend| &mend.command)
    }

    fn without_vip(mut facts: Facts) -> Facts {
        facts.network.links[0].addresses.pop();
        facts
    }

    #[test]
    fn an_absent_address_fails_in_the_network_of_a_link_and_is_a_warning_where_it_may_be_routed() {
        let held = serve(facts(), web(), ForwardingMethod::Nat);
        assert_eq!(only(present(&held)).level, Level::Ok);
        let found = only(present(&without_vip(held)));
        assert_eq!((found.level, command(&found)), (Level::Fail, "ip address add 198.51.100.100/32 dev wan"));
        let mut routed = facts();
        routed.addresses = vec!["203.0.113.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        let found = present(&routed);
        let commands: Vec<_> = found.iter().map(|found| (found.level, command(found))).collect();
        let v4 = "ip address add 203.0.113.5/32 dev wan";
        let v6 = "ip address add 2001:db8::5/128 dev wan nodad";
        assert_eq!(commands, [(Level::Warn, v4), (Level::Warn, v6)]);
    }

    #[test]
    fn an_address_whose_clients_come_in_by_an_interface_that_is_not_attached_names_that_interface() {
        let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
        facts.interfaces.remove(0);
        let assert_named = |facts: &Facts| {
            let found = only(present(facts));
            assert_eq!((found.level, command(&found)), (Level::Fail, ""));
            assert!(found.found.contains("restart xvsd with `--interface wan`"), "{found}");
        };
        assert_named(&facts);
        let mut facts = without_vip(facts);
        assert_named(&facts);
        facts.interfaces.clear();
        assert_eq!(only(present(&facts)).level, Level::Warn, "no interface was named");
    }

    #[test]
    fn an_address_on_another_interface_fails_if_arp_ignore_suppresses_it() {
        let mut facts = without_vip(serve(facts(), web(), ForwardingMethod::Nat));
        let vip = "198.51.100.100".parse().unwrap();
        facts.network.add_link("lo", "00:00:00:00:00:00".parse().unwrap(), &[(vip, 32)], 65536).unwrap();
        assert_eq!(only(answered_by_the_director(&facts)).level, Level::Ok);
        facts.settings.insert(conf("all", IGNORE), "1\n".to_owned());
        let found = only(answered_by_the_director(&facts));
        assert_eq!((found.level, command(&found)), (Level::Fail, "ip address add 198.51.100.100/32 dev wan"));
    }

    #[test]
    fn an_address_that_the_other_director_of_a_pair_has_is_one_warning_without_a_command() {
        let mut facts = without_vip(serve(facts(), web(), ForwardingMethod::Nat));
        let (addr, mac) = ("198.51.100.100".parse().unwrap(), xvs_proto::MacAddr([2, 0, 0, 0, 0, 0x99]));
        facts.probed = vec!["wan".to_owned()];
        facts.answers.push(Answer { addr, link: "wan".to_owned(), mac });
        let found = only(present(&facts));
        assert_eq!((found.level, command(&found)), (Level::Warn, ""));
        assert!(found.found.contains("02:00:00:00:00:99 answers ARP for it on wan"), "{found}");
        assert_eq!(answered_by_others(&facts), []);
    }

    #[test]
    fn forwarding_is_checked_for_nat_real_servers_alone() {
        assert_eq!(forwarding(&serve(facts(), web(), ForwardingMethod::DirectRouting)), []);
        let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
        let found = only(forwarding(&facts));
        assert_eq!((found.level, command(&found)), (Level::Warn, "sysctl -w net.ipv4.ip_forward=1"));
        facts.settings.insert("net/ipv4/ip_forward".to_owned(), "1\n".to_owned());
        assert_eq!(only(forwarding(&facts)).level, Level::Ok);
    }

    #[test]
    fn redirects_are_a_warning_if_clients_and_nat_real_servers_share_a_link() {
        let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
        for (path, value) in [("net/ipv4/ip_forward", "1\n"), ("net/ipv4/conf/lan/send_redirects", "1\n")] {
            facts.settings.insert(path.to_owned(), value.to_owned());
        }
        assert_eq!(redirects(&facts), [], "clients are on wan");
        facts.network.add_route("0.0.0.0/0".parse().unwrap(), "192.0.2.254".parse().ok(), "lan").unwrap();
        let found = only(redirects(&facts));
        let off = "sysctl -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0";
        assert_eq!((found.level, command(&found)), (Level::Warn, off));
        facts.settings.insert("net/ipv4/conf/lan/send_redirects".to_owned(), "0\n".to_owned());
        assert_eq!(only(redirects(&facts)).level, Level::Ok);
    }

    #[test]
    fn a_strict_source_check_is_a_warning_if_the_default_route_is_on_another_link() {
        let mut facts = serve(facts(), web(), ForwardingMethod::Nat);
        facts.settings.insert(conf("all", SOURCE), "1\n".to_owned());
        assert_eq!(source_check(&facts), [], "no default route on another link");
        facts.network.add_route("0.0.0.0/0".parse().unwrap(), "192.0.2.254".parse().ok(), "lan").unwrap();
        let found = only(source_check(&facts));
        assert_eq!((found.level, command(&found)), (Level::Warn, "sysctl -w net.ipv4.conf.wan.rp_filter=2"));
        facts.settings.insert(conf("wan", SOURCE), "2\n".to_owned());
        assert_eq!(only(source_check(&facts)).level, Level::Ok);
    }
}
