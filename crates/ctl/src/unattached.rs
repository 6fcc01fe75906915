//! Interfaces through which packets of services pass although xvsd is not attached to them.
//!
//! For the warnings of `xvs status`, for `xvs explain` and `xvs doctor`. Evaluates the machine's current links,
//! addresses and routes, without traffic. Cost: one pass over the addresses to set up; a look-up of a real server is
//! one pass over the routes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::network::{Link, LinkKind, Network, RouteAction, RouteKey};
use xvs_proto::{Family, Prefix};

use crate::bonds::{bond_of, check};

/// The machine's interfaces, attached and not.
#[derive(Default)]
pub struct Attachment<'a> {
    network: Option<&'a Network>,
    /// The kernel's indices of the attached links, and of the bonds of which they are members.
    attached: BTreeSet<u32>,
    /// Addresses and networks of the attached links.
    reached: Addresses<'a>,
    /// Addresses and networks of all other links on which packets can arrive.
    missed: Addresses<'a>,
}

/// Addresses and networks of links.
#[derive(Default)]
struct Addresses<'a> {
    own: HashMap<IpAddr, &'a Link>,
    networks: Vec<(Prefix, &'a Link)>,
}

impl<'a> Addresses<'a> {
    fn add(&mut self, link: &'a Link) {
        let mut seen = HashSet::new();
        for &(addr, len) in &link.addresses {
            self.own.entry(addr).or_insert(link);
            let network = Prefix::new(addr, len).filter(|network| *network != Prefix::host(addr));
            self.networks
                .extend(network.filter(|network| seen.insert(*network)).map(|network| (network, link)));
        }
    }

    /// The link that has an address, otherwise a link whose network contains the address.
    fn find(&self, addr: IpAddr) -> Option<&'a Link> {
        self.own
            .get(&addr)
            .copied()
            .or_else(|| Some(self.networks.iter().find(|(network, _)| network.contains(addr))?.1))
    }
}

impl<'a> Attachment<'a> {
    /// The interfaces of a machine; those in `names` are attached. If one of these is gone or down, or if there are
    /// none, nothing is reported: the kernel's routes may differ once it is up.
    pub fn new<'n>(network: &'a Network, names: impl IntoIterator<Item = &'n str>) -> Self {
        let attached: Option<BTreeSet<_>> = names
            .into_iter()
            .map(|name| {
                let link = network.link_named(name)?;
                // While a bond is up, a member may be down.
                let link = bond_of(link, &network.links).unwrap_or(link);
                link.up.then_some(link.ifindex)
            })
            .collect();
        let Some(attached) = attached.filter(|attached| !attached.is_empty()) else { return Self::default() };
        let mut this = Self { network: Some(network), attached, ..Self::default() };
        for link in &network.links {
            if this.is_attached(link) {
                this.reached.add(link);
            } else if link.resolves && link.up {
                this.missed.add(link);
            }
        }
        this
    }

    /// Whether a link is attached, or is a VLAN on an attached one. Frames for a macvlan stay with the kernel.
    fn is_attached(&self, link: &Link) -> bool {
        self.attached.contains(&link.vlan.map_or(link.ifindex, |vlan| vlan.over))
            || self.attached.contains(&link.ifindex)
    }

    /// The link on which clients' packets for a virtual address arrive, if xvsd is not attached to it.
    pub fn towards_clients(&self, vip: IpAddr) -> Option<&'a Link> {
        // Packets to an address of an unattached link, such as loopback, arrive on the link whose network contains it.
        self.reached.find(vip).is_none().then(|| self.missed.find(vip))?
    }

    /// The link on which packets leave, if xvsd is not attached to it.
    pub fn towards(&self, key: impl Into<RouteKey>) -> Option<&'a Link> {
        let network = self.network?;
        let RouteAction::Unicast(hops) = &network.route_to(key)?.action else { return None };
        let links: Vec<_> = hops
            .iter()
            .filter_map(|hop| network.links.iter().find(|link| link.ifindex == hop.ifindex))
            .collect();
        if links.iter().any(|link| self.is_attached(link)) {
            return None;
        }
        links.into_iter().find(|link| link.resolves)
    }

    /// The warning, after packets had no route, that default routes of these families use links that are not attached.
    pub fn default_route_warning(&self, families: &BTreeSet<Family>) -> Option<Warning> {
        // No VRF has the default route of others.
        if self.network?.links.iter().filter(|link| self.is_attached(link)).all(|link| link.vrf.is_some()) {
            return None;
        }
        let link = families.iter().find_map(|family| match family {
            Family::V4 => self.towards(IpAddr::from([0; 4])),
            Family::V6 => self.towards(IpAddr::from([0; 16])),
        })?;
        let name = &link.name;
        let text = format!(
            "packets had no route by an attached interface, and the default route is by {name}, to which xvsd is not \
             attached, so replies to clients cannot leave there; {}",
            self.step(link)
        );
        Some(Warning::new(WarningKind::DefaultRouteNotAttached, name, text))
    }

    /// The operator's step to attach a link, as a clause.
    pub fn step(&self, link: &Link) -> String {
        let links = self.network.map_or(&[][..], |network| &network.links);
        let below =
            link.vlan.and_then(|vlan| Some((vlan.id, links.iter().find(|one| one.ifindex == vlan.over)?)));
        let target = below.map_or(link, |(_, below)| below);
        let name = &link.name;
        let mut ports = links.iter().filter(|one| one.master == Some(target.ifindex)).peekable();
        match (target.kind, below) {
            (LinkKind::Bridge, _) if ports.peek().is_some() && ports.all(is_of_guest) => format!(
                "xvs does not serve behind {}, a bridge of containers or virtual machines; connect them to a network \
                 behind an attached interface",
                target.name
            ),
            (LinkKind::Bridge, Some((id, _))) => format!(
                "the bridge {0} hides the tags of {name} from xvs: make a bridge for VLAN {id} with the addresses and routes \
                 of {name}, with VLANs of the ports of {0} as its ports, and {1}",
                target.name,
                attach("BRIDGE")
            ),
            // The step is in the error.
            _ => check(&target.name, links).map_or_else(|why| why.to_string(), |()| attach(&target.name)),
        }
    }

    /// The warnings about these virtual addresses and real servers, one for each link and kind.
    pub fn warnings(
        &self,
        virtual_addresses: impl IntoIterator<Item = IpAddr>,
        real_servers: impl IntoIterator<Item = IpAddr>,
    ) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let virtual_addresses: BTreeSet<_> = virtual_addresses.into_iter().collect();
        for (name, (link, addresses)) in self.by_link(virtual_addresses, |addr| self.towards_clients(addr)) {
            let text = format!(
                "clients of {} come in by {name}, to which xvsd is not attached, so their packets go to the kernel; {}",
                listed(&addresses, "virtual address", "virtual addresses"),
                self.step(link)
            );
            warnings.push(Warning::new(WarningKind::ClientsNotAttached, name, text));
        }
        let real_servers: BTreeSet<_> = real_servers.into_iter().collect();
        for (name, (link, addresses)) in
            self.by_link(real_servers.into_iter().take(LOOK_UPS_MAX), |addr| self.towards(addr))
        {
            let text = format!(
                "the route to {} is by {name}, to which xvsd is not attached, so it cannot send there; {}",
                listed(&addresses, "real server", "real servers"),
                self.step(link)
            );
            warnings.push(Warning::new(WarningKind::ServersNotAttached, name, text));
        }
        warnings
    }

    fn by_link(
        &self,
        addresses: impl IntoIterator<Item = IpAddr>,
        link_of: impl Fn(IpAddr) -> Option<&'a Link>,
    ) -> BTreeMap<&'a str, (&'a Link, Vec<IpAddr>)> {
        let mut by_link = BTreeMap::new();
        for addr in addresses {
            let Some(link) = link_of(addr) else { continue };
            by_link.entry(link.name.as_str()).or_insert_with(|| (link, Vec::new())).1.push(addr);
        }
        by_link
    }
}

fn is_of_guest(port: &Link) -> bool {
    OF_GUESTS.iter().any(|prefix| port.name.starts_with(prefix))
}

fn attach(name: &str) -> String {
    format!(
        "add {name} to `interfaces` in xvs.toml and `xvs reload`, or restart xvsd with `--interface {name}` beside the others"
    )
}

/// The first address, and the number of others.
fn listed(addresses: &[IpAddr], one: &str, many: &str) -> String {
    let first = addresses.first().map(ToString::to_string).unwrap_or_default();
    match addresses.len() {
        0 | 1 => first,
        2 => format!("{first} and 1 more {one}"),
        count => format!("{first} and {} more {many}", count - 1),
    }
}

/// The prefixes of the names of interfaces that Docker, LXC, libvirt and QEMU create for a guest.
const OF_GUESTS: [&str; 3] = ["veth", "vnet", "tap"];

/// Maximum number of real servers without a usable route that are looked up for one report.
const LOOK_UPS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use xvs_model::report::warning::texts;

    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// `wan` 198.51.100.1/24, `lan` 192.0.2.1/24, `dmz` 203.0.113.1/24, `lo` with 198.51.100.7 and 10.0.0.1.
    fn network() -> Network {
        let mut network = Network::default();
        for (name, addresses) in [
            ("wan", &[("198.51.100.1", 24), ("198.51.100.100", 32)][..]),
            ("lan", &[("192.0.2.1", 24)]),
            ("dmz", &[("203.0.113.1", 24)]),
            ("lo", &[("198.51.100.7", 32), ("10.0.0.1", 32)]),
        ] {
            let addresses: Vec<_> = addresses.iter().map(|(text, len)| (addr(text), *len)).collect();
            let mac = if name == "lo" { "00:00:00:00:00:00" } else { "02:00:00:00:00:01" };
            network.add_link(name, mac.parse().unwrap(), &addresses, 1500).unwrap();
        }
        network
    }

    fn entrance(network: &Network, attached: &[&str], vip: &str) -> Option<String> {
        let attachment = Attachment::new(network, attached.iter().copied());
        attachment.towards_clients(addr(vip)).map(|link| link.name.clone())
    }

    #[test]
    fn clients_of_an_address_come_in_by_the_link_that_has_it_or_by_that_in_whose_network_it_is() {
        let network = network();
        for vip in ["198.51.100.100", "198.51.100.7", "198.51.100.50"] {
            assert_eq!(entrance(&network, &["lan"], vip).as_deref(), Some("wan"), "{vip}");
            assert_eq!(entrance(&network, &["lan", "wan"], vip), None, "{vip}");
        }
        assert_eq!(entrance(&network, &["lan"], "10.0.0.1"), None, "routers may send its packets by `lan`");
        assert_eq!(entrance(&network, &["lan"], "203.0.114.1"), None);
    }

    #[test]
    fn frames_of_a_vlan_arrive_by_the_link_below_and_a_link_that_is_down_receives_none() {
        let mut network = network();
        network.make_vlan("dmz", 5, "wan").unwrap();
        assert_eq!(entrance(&network, &["wan"], "203.0.113.1"), None);
        network.links[2].vlan = None;
        assert_eq!(entrance(&network, &["wan"], "203.0.113.1").as_deref(), Some("dmz"));
        network.links[2].up = false;
        assert_eq!(entrance(&network, &["wan"], "203.0.113.1"), None);
    }

    #[test]
    fn a_link_that_is_missing_is_named_once_with_the_number_of_addresses_and_the_interface_to_attach() {
        let mut network = network();
        let servers = ["203.0.113.11", "203.0.113.12", "203.0.113.13", "192.0.2.11", "10.9.9.9"].map(addr);
        let warnings = |network: &Network| {
            Attachment::new(network, ["lan"])
                .warnings([addr("198.51.100.100"), addr("198.51.100.101")], servers)
        };
        let of_servers = "the route to 203.0.113.11 and 2 more real servers is by dmz, to which xvsd is not attached, so it \
                          cannot send there; add dmz to `interfaces` in xvs.toml and `xvs reload`, or restart xvsd with \
                          `--interface dmz` beside the others";
        let of_clients = "clients of 198.51.100.100 and 1 more virtual address come in by wan, to which xvsd is not \
                          attached, so their packets go to the kernel; add wan to `interfaces` in xvs.toml and `xvs \
                          reload`, or restart xvsd with `--interface wan` beside the others";
        assert_eq!(texts(&warnings(&network)), [of_clients, of_servers]);

        // For a VLAN the link below is attached, also if that is a bond.
        network.make_vlan("dmz", 5, "wan").unwrap();
        assert!(
            warnings(&network)[1].text.contains("is by dmz")
                && warnings(&network)[1].text.contains("`--interface wan`")
        );
        network.add_link("eth3", "02:00:00:00:00:03".parse().unwrap(), &[], 1500).unwrap();
        network.links[4].master = Some(network.links[0].ifindex);
        network.links[0].kind = LinkKind::Bond;
        for warning in warnings(&network) {
            assert!(warning.text.ends_with("or restart xvsd with `--interface wan` beside the others"));
        }

        network.links[0].kind = LinkKind::Bridge;
        assert!(
            warnings(&network)[0].text.contains("; dmz is a VLAN over the bridge wan, which hides its tags")
        );
        assert!(
            warnings(&network)[1].text.contains("the bridge wan hides the tags of dmz from xvs"),
            "{}",
            warnings(&network)[1]
        );
        network.links[4].name = "veth1a2b3c".to_owned();
        assert!(
            warnings(&network)[0].text.contains("; xvs does not serve behind wan, a bridge of containers")
        );
        network.links[0].kind = LinkKind::Team;
        assert!(warnings(&network)[0].text.contains("wan is a team, through which xvs cannot send"));
    }

    #[test]
    fn a_bond_is_attached_by_its_members_while_it_is_up() {
        let mut network = network();
        network.links[2].kind = LinkKind::Bond;
        for name in ["eth0", "eth1"] {
            network.add_link(name, "02:00:00:00:00:03".parse().unwrap(), &[], 1500).unwrap();
            network.links.last_mut().unwrap().master = Some(network.links[2].ifindex);
        }
        let names = |network: &Network| {
            let attachment = Attachment::new(network, ["eth0", "eth1"]);
            let of = |text| attachment.towards(addr(text)).map(|link| link.name.clone());
            (of("203.0.113.11"), of("192.0.2.11"))
        };
        let lan_is_missing = (None, Some("lan".to_owned()));
        assert_eq!(names(&network), lan_is_missing);
        network.links[4].up = false;
        assert_eq!(names(&network), lan_is_missing);
        network.links[2].up = false;
        assert_eq!(names(&network), (None, None), "nothing is missing while the bond is down");
    }

    #[test]
    fn while_an_attached_link_is_down_or_gone_nothing_is_missing() {
        let mut network = network();
        let servers = [addr("203.0.113.11")];
        let warnings = |network: &Network| Attachment::new(network, ["lan", "wan"]).warnings([], servers);
        assert_eq!(warnings(&network).len(), 1);
        network.links[0].up = false;
        assert_eq!(texts(&warnings(&network)), [""; 0]);
        network.links.remove(0);
        assert_eq!(texts(&warnings(&network)), [""; 0]);
        assert_eq!(entrance(&network, &[], "192.0.2.1"), None, "no interface was named");
    }

    #[test]
    fn a_default_route_by_a_link_that_is_not_attached_is_a_warning() {
        let mut network = network();
        network.add_route("0.0.0.0/0".parse().unwrap(), Some(addr("203.0.113.9")), "dmz").unwrap();
        let warning = |attached, families: &[Family]| {
            let families = families.iter().copied().collect();
            Attachment::new(&network, [attached]).default_route_warning(&families)
        };
        let both = [Family::V4, Family::V6];
        assert!(warning("lan", &both).unwrap().text.contains("the default route is by dmz"));
        assert_eq!(warning("dmz", &both), None);
        assert_eq!(warning("lan", &[Family::V6]), None, "no service needs it");
    }

    #[test]
    fn a_route_with_one_attached_next_hop_is_usable_and_one_by_loopback_names_no_interface() {
        let mut network = network();
        let net: Prefix = "10.9.0.0/16".parse().unwrap();
        network.add_route(net, Some(addr("203.0.113.9")), "dmz").unwrap();
        let behind = |network: &Network| {
            let attachment = Attachment::new(network, ["lan"]);
            attachment.towards(addr("10.9.9.9")).map(|link| link.name.clone())
        };
        assert_eq!(behind(&network).as_deref(), Some("dmz"));
        network.add_route(net, Some(addr("192.0.2.9")), "lan").unwrap();
        assert_eq!(behind(&network), None);
        network.routes.retain(|route| route.dest != net);
        network.add_route(net, None, "lo").unwrap();
        assert_eq!(behind(&network), None);
    }
}
