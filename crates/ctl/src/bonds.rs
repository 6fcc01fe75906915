//! Bonds, bridges and teams: the interfaces to attach for a configured name, and those that cannot be attached.
//!
//! For a bond, xvsd attaches the members: a socket receives only frames that its own device received, and the frames
//! that it sends do not pass through the bond. For a bridge, it attaches the bridge itself, in generic mode: only the
//! bridge knows the packets for this machine, and the port for each other packet. A bridge's ports have no addresses,
//! routes or neighbours, so workers would find no next hop on them. Checked at the start; each change of the network
//! renews the warnings. `port/vlan_and_bond.rs` in dataplane chooses the member on which a packet leaves.

use thiserror::Error;
use xvs_model::report::status::{BondMember, InterfaceStatus};
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::network::{Link, LinkKind};
use xvs_xdp::{AttachError, check_port, check_tags, index_of};

/// The reason why an interface cannot be attached because of the links above or below it.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum BondError {
    #[error(
        "{member} is a member of the {kind} {master}, which has its addresses, routes and neighbours, so xvs cannot send \
         through it; name {master} instead (`--interface {master}`, `interfaces` in xvs.toml)"
    )]
    Member { member: String, kind: &'static str, master: String },
    #[error(
        "{member} is a member of the team {team}, which has its addresses, routes and neighbours, so xvs cannot send \
         through it; take it out (`ip link set dev {member} nomaster`) and give it the addresses and routes of {team}"
    )]
    TeamMember { member: String, team: String },
    #[error(
        "{team} is a team, through which xvs cannot send; make it a bond, or take a member out (`ip link set dev MEMBER \
         nomaster`), give it the addresses and routes of {team}, and name it instead (`--interface MEMBER`)"
    )]
    Team { team: String },
    #[error(
        "{bond} is a bond without members, so there is nothing to attach; add one (`ip link set dev MEMBER master {bond}`) \
         and start xvsd again"
    )]
    NoMembers { bond: String },
    #[error(
        "{bond} is a bond in the mode {mode}, which sends a packet by all members or uses a link address for each, and xvs \
         does neither; use active-backup, 802.3ad, balance-xor, balance-rr or balance-tlb (`ip link set dev {bond} type bond \
         mode MODE`, while it has no members)"
    )]
    Mode { bond: String, mode: &'static str },
    #[error(
        "{vlan} is a VLAN over the bridge {bridge}, which hides its tags from xvs; make a bridge for each VLAN, with VLANs \
         of its ports as its ports, or attach a port instead, taken out of {bridge}"
    )]
    HiddenTags { vlan: String, bridge: String },
    #[error(
        "{vrf} is a VRF, whose packets are received by its members; name these instead (`--interface MEMBER`, \
         `interfaces` in xvs.toml; `ip link show vrf {vrf}` lists them)"
    )]
    Vrf { vrf: String },
    #[error(
        "{name} is another name of the interface {link} (the label of an address, or an altname); name {link} instead \
         (`--interface {link}`, `interfaces` in xvs.toml)"
    )]
    OtherName { name: String, link: String },
    #[error("{bridge} is a bridge, and so its ports count: {why}")]
    Port { bridge: String, why: AttachError },
    #[error(transparent)]
    Tags(AttachError),
}

/// An interface to attach, and the bond that is the reason.
pub type Chosen = (String, Option<BondMember>);

/// The interfaces to attach for this name: the members of a bond, or the interface itself.
///
/// # Errors
///
/// It cannot be attached. A missing interface is not an error here.
pub fn choose(name: &str, links: &[Link]) -> Result<Vec<Chosen>, BondError> {
    check(name, links)?;
    let Some(bond) = named(name, links).filter(|link| link.kind == LinkKind::Bond) else {
        check_offloads(name, links)?;
        return Ok(vec![(name.to_owned(), None)]);
    };
    let mut members: Vec<_> = members(bond, links).collect();
    members.sort_by_key(|link| link.ifindex);
    members.iter().try_for_each(|member| check_offloads(&member.name, links))?;
    if members.is_empty() {
        return Err(BondError::NoMembers { bond: bond.name.clone() });
    }
    Ok(members.into_iter().map(|link| chosen(link, bond)).collect())
}

fn chosen(link: &Link, bond: &Link) -> Chosen {
    (link.name.clone(), Some(BondMember { name: bond.name.clone(), active: link.active }))
}

/// Checks that a named interface can be attached, as far as other links matter.
///
/// # Errors
/// It cannot be attached.
pub fn check(name: &str, links: &[Link]) -> Result<(), BondError> {
    let Some(link) = named(name, links) else { return check_name(name, links) };
    if let Some(master) = master(link, links) {
        let member = name.to_owned();
        let of = master.name.clone();
        match master.kind {
            LinkKind::Vrf(_) | LinkKind::Single => {}
            LinkKind::Team => return Err(BondError::TeamMember { member, team: of }),
            LinkKind::Bridge => return Err(BondError::Member { member, kind: "bridge", master: of }),
            LinkKind::Bond | LinkKind::OtherBond(_) => {
                return Err(BondError::Member { member, kind: "bond", master: of });
            }
        }
    }
    match link.kind {
        LinkKind::Single | LinkKind::Bond => Ok(()),
        LinkKind::OtherBond(mode) => Err(BondError::Mode { bond: name.to_owned(), mode }),
        LinkKind::Team => Err(BondError::Team { team: name.to_owned() }),
        LinkKind::Vrf(_) => Err(BondError::Vrf { vrf: name.to_owned() }),
        LinkKind::Bridge => {
            match links.iter().find(|one| one.vlan.is_some_and(|vlan| vlan.over == link.ifindex)) {
                Some(vlan) => Err(BondError::HiddenTags { vlan: vlan.name.clone(), bridge: name.to_owned() }),
                None => Ok(()),
            }
        }
    }
}

/// Checks a name that no link has: the kernel accepts `lan:0` (a name ends at the colon) and altnames for a link, which
/// xvs knows only by its name.
fn check_name(name: &str, links: &[Link]) -> Result<(), BondError> {
    let index = index_of(name).ok();
    match links.iter().find(|link| Some(link.ifindex) == index) {
        Some(link) => Err(BondError::OtherName { name: name.to_owned(), link: link.name.clone() }),
        None => Ok(()),
    }
}

/// Checks that neither a bridge's ports nor the interfaces below them merge packets, and that an interface with VLANs
/// on it, or on its bond, leaves the tags. Cost: five requests to the kernel for each; none if it is neither.
///
/// # Errors
///
/// The text names the interface and the command that corrects it.
pub fn check_offloads(name: &str, links: &[Link]) -> Result<(), BondError> {
    let Some(link) = named(name, links) else { return Ok(()) };
    if link.kind == LinkKind::Bridge {
        return below(link, links).into_iter().try_for_each(|port| {
            check_port(&port.name).map_err(|why| BondError::Port { bridge: name.to_owned(), why })
        });
    }
    match has_vlans(link, links) {
        true => check_tags(name).map_err(BondError::Tags),
        false => Ok(()),
    }
}

/// Whether there are VLANs on a link, or on its bond.
fn has_vlans(link: &Link, links: &[Link]) -> bool {
    let bond = bond_of(link, links).map(|bond| bond.ifindex);
    links.iter().filter_map(|one| one.vlan).any(|vlan| vlan.over == link.ifindex || Some(vlan.over) == bond)
}

/// The bond that a link is a member of.
pub fn bond_of<'l>(link: &Link, links: &'l [Link]) -> Option<&'l Link> {
    master(link, links).filter(|master| master.kind == LinkKind::Bond)
}

/// The members that are up but not attached, of the bond of an attached interface.
pub fn joined(interfaces: &[InterfaceStatus], links: &[Link]) -> impl Iterator<Item = Chosen> {
    links.iter().filter_map(move |link| {
        let bond = bond_of(link, links)?;
        let is_attached = interfaces.iter().any(|interface| interface.name == link.name);
        let is_followed =
            interfaces.iter().filter_map(|interface| interface.bond.as_ref()).any(|of| of.name == bond.name);
        (link.up && !is_attached && is_followed).then(|| chosen(link, bond))
    })
}

/// Warnings about attached interfaces: those that became members or left their bond, bridges that can no longer be
/// used, bonds without an active member.
pub fn warnings(interfaces: &[InterfaceStatus], links: &[Link]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut bonds = Vec::new();
    for InterfaceStatus { name, bond, .. } in interfaces {
        let Some(BondMember { name: bond, .. }) = bond else {
            if let Err(why) = check(name, links) {
                warnings.push(Warning::new(WarningKind::InterfaceUnusable, name, why.to_string()));
            }
            continue;
        };
        // An interface that is gone already has a warning.
        if named(name, links).is_some_and(|link| bond_of(link, links).is_none_or(|of| of.name != *bond)) {
            let text = format!(
                "{name} was attached as a member of {bond} and is none any more, so packets of services that it receives are \
                 dropped; add it again (`ip link set dev {name} master {bond}`), or restart xvsd"
            );
            warnings.push(Warning::new(WarningKind::BondLeft, name, text));
        }
        if !bonds.contains(&bond) {
            bonds.push(bond);
        }
    }
    for bond in bonds {
        let Some(link) = named(bond, links) else { continue };
        if !members(link, links).any(|member| member.active) {
            let text = format!(
                "{bond} has no active member, so xvsd neither receives nor sends by it; see `ip link` and \
                 /proc/net/bonding/{bond}"
            );
            warnings.push(Warning::new(WarningKind::BondInactive, bond, text));
        }
    }
    warnings
}

fn named<'l>(name: &str, links: &'l [Link]) -> Option<&'l Link> {
    links.iter().find(|link| link.name == name)
}

fn master<'l>(link: &Link, links: &'l [Link]) -> Option<&'l Link> {
    links.iter().find(|one| link.master == Some(one.ifindex))
}

fn members<'l>(link: &Link, links: &'l [Link]) -> impl Iterator<Item = &'l Link> + use<'l> {
    let ifindex = link.ifindex;
    links.iter().filter(move |one| one.master == Some(ifindex))
}

/// The links that receive a bridge's packets: its ports, and the links below them.
fn below<'l>(bridge: &Link, links: &'l [Link]) -> Vec<&'l Link> {
    let mut found: Vec<&Link> = members(bridge, links).collect();
    let mut next = 0;
    while let Some(link) = found.get(next).copied() {
        let new: Vec<_> = links
            .iter()
            .filter(|one| link.vlan.is_some_and(|vlan| vlan.over == one.ifindex))
            .chain(members(link, links))
            .filter(|one| !found.contains(one))
            .collect();
        found.extend(new);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use xvs_model::report::warning::texts;
    use xvs_model::sample;
    use xvs_proto::network::Network;

    use crate::bonds::*;

    /// Links without members, by name.
    fn links(names: &[&str]) -> Vec<Link> {
        let mut network = Network::default();
        for name in names {
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        }
        network.links
    }

    /// Gives a link this kind and these members.
    fn make(links: &mut [Link], name: &str, kind: LinkKind, members: &[&str]) {
        let master = links.iter().position(|link| link.name == name).unwrap();
        links[master].kind = kind;
        let ifindex = links[master].ifindex;
        for member in links.iter_mut().filter(|link| members.contains(&link.name.as_str())) {
            member.master = Some(ifindex);
        }
    }

    fn of_bond(name: &str, bond: &str) -> InterfaceStatus {
        let bond = Some(BondMember { name: bond.to_owned(), active: true });
        InterfaceStatus { name: name.to_owned(), bond, ..sample::interface() }
    }

    #[test]
    fn for_a_bond_its_members_are_attached_and_for_any_other_link_it_is_itself() {
        let mut links = links(&["eth0", "bond0", "eth1", "br0", "eth2"]);
        make(&mut links, "bond0", LinkKind::Bond, &["eth0", "eth1"]);
        make(&mut links, "br0", LinkKind::Bridge, &[]);
        links[2].active = false;
        let member =
            |name: &str, active| (name.to_owned(), Some(BondMember { name: "bond0".to_owned(), active }));
        assert_eq!(choose("bond0", &links).unwrap(), [member("eth0", true), member("eth1", false)]);
        for name in ["eth2", "br0", "gone0"] {
            assert_eq!(choose(name, &links).unwrap(), [(name.to_owned(), None)]);
        }
    }

    #[test]
    fn what_cannot_be_attached_is_refused_with_the_next_step() {
        let names =
            ["eth0", "eth1", "eth2", "bond0", "bond1", "bond2", "br0", "br0.5", "team0", "blue", "eth3"];
        let mut links = links(&names);
        make(&mut links, "blue", LinkKind::Vrf(xvs_proto::network::Table(10)), &["eth3"]);
        make(&mut links, "bond0", LinkKind::Bond, &["eth0"]);
        make(&mut links, "bond1", LinkKind::Bond, &[]);
        make(&mut links, "bond2", LinkKind::OtherBond("broadcast"), &[]);
        make(&mut links, "br0", LinkKind::Bridge, &["eth1", "bond0"]);
        make(&mut links, "team0", LinkKind::Team, &["eth2"]);
        links[7].vlan = Some(xvs_proto::network::Vlan { id: 5, over: links[6].ifindex });
        assert!(choose("eth3", &links).is_ok(), "a member of a VRF");
        for (name, begins, step) in [
            ("eth0", "eth0 is a member of the bond bond0", "`--interface bond0`"),
            ("eth1", "eth1 is a member of the bridge br0", "`--interface br0`"),
            ("bond0", "bond0 is a member of the bridge br0", "`--interface br0`"),
            ("eth2", "eth2 is a member of the team team0", "`ip link set dev eth2 nomaster`"),
            ("bond1", "bond1 is a bond without members", "`ip link set dev MEMBER master bond1`"),
            ("bond2", "bond2 is a bond in the mode broadcast", "use active-backup"),
            ("br0", "br0.5 is a VLAN over the bridge br0", "a bridge for each VLAN"),
            ("team0", "team0 is a team", "make it a bond"),
            ("blue", "blue is a VRF", "`--interface MEMBER`"),
        ] {
            let why = choose(name, &links).unwrap_err().to_string();
            assert!(why.starts_with(begins) && why.contains(step), "{why}");
        }
    }

    #[test]
    fn an_interface_is_named_by_its_own_name_and_not_by_the_label_of_an_address() {
        let mut links = links(&["lo"]);
        links[0].ifindex = 1;
        let why = choose("lo:0", &links).unwrap_err().to_string();
        assert!(
            why.starts_with("lo:0 is another name of the interface lo") && why.contains("`--interface lo`"),
            "{why}"
        );
        assert!(choose("lo", &links).is_ok() && choose("gone:0", &links).is_ok());
    }

    #[test]
    fn what_a_bridge_receives_was_received_by_its_ports_and_by_what_is_below_them() {
        let mut links = links(&["br0", "eth0", "eth0.5", "bond0", "eth1", "eth2"]);
        make(&mut links, "br0", LinkKind::Bridge, &["eth0.5", "bond0"]);
        make(&mut links, "bond0", LinkKind::Bond, &["eth1"]);
        links[2].vlan = Some(xvs_proto::network::Vlan { id: 5, over: links[1].ifindex });
        let mut names: Vec<_> = below(&links[0], &links).iter().map(|link| link.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["bond0", "eth0", "eth0.5", "eth1"]);
    }

    #[test]
    fn vlans_over_an_interface_or_over_its_bond_need_tags_from_it() {
        let mut links = links(&["eth0", "eth0.5", "bond0", "bond0.7", "eth1", "eth2"]);
        make(&mut links, "bond0", LinkKind::Bond, &["eth1"]);
        links[1].vlan = Some(xvs_proto::network::Vlan { id: 5, over: links[0].ifindex });
        links[3].vlan = Some(xvs_proto::network::Vlan { id: 7, over: links[2].ifindex });
        let with: Vec<_> =
            links.iter().filter(|link| has_vlans(link, &links)).map(|link| &*link.name).collect();
        assert_eq!(with, ["eth0", "bond0", "eth1"]);
    }

    #[test]
    fn a_member_that_leaves_and_a_bond_without_an_active_one_are_warnings() {
        let interfaces = [of_bond("eth0", "bond0"), of_bond("eth1", "bond0")];
        let mut links = links(&["eth0", "eth1", "eth2", "bond0"]);
        make(&mut links, "bond0", LinkKind::Bond, &["eth0", "eth1"]);
        assert_eq!(texts(&warnings(&interfaces, &links)), [""; 0]);
        links[1].master = None;
        let left = warnings(&interfaces, &links);
        assert!(left.len() == 1 && left[0].text.contains("`ip link set dev eth1 master bond0`"), "{left:?}");
        make(&mut links, "bond0", LinkKind::Bond, &["eth1"]);
        (links[0].active, links[1].active) = (false, false);
        let none = warnings(&interfaces, &links);
        assert!(none.len() == 1 && none[0].text.starts_with("bond0 has no active member"), "{none:?}");
    }

    #[test]
    fn a_link_that_joins_the_bond_of_attached_members_is_attached_once_it_is_up() {
        let interfaces = [of_bond("eth0", "bond0"), sample::interface()];
        let mut links = links(&["eth0", "eth1", "bond0", "bond1", "eth2"]);
        make(&mut links, "bond0", LinkKind::Bond, &["eth0"]);
        make(&mut links, "bond1", LinkKind::Bond, &["eth2"]);
        assert_eq!(joined(&interfaces, &links).count(), 0, "bond1 is not attached");
        make(&mut links, "bond0", LinkKind::Bond, &["eth1"]);
        links[1].up = false;
        assert_eq!(joined(&interfaces, &links).count(), 0);
        links[1].up = true;
        let member = BondMember { name: "bond0".to_owned(), active: true };
        assert_eq!(joined(&interfaces, &links).collect::<Vec<_>>(), [("eth1".to_owned(), Some(member))]);
    }
}
