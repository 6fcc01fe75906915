//! Interfaces that are members of a bridge, bond or team, and so cannot be attached.
//!
//! The kernel delivers a member's packets as those of the bridge, which also has the addresses, routes and neighbours.
//! So workers would find no next hop on the member. Checked at the start and at each change of the network.

use std::fmt;

use xvs_proto::network::Link;
use xvs_xdp::stacked;

/// An interface that is a member of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The member.
    pub member: String,
    /// The other one.
    pub master: String,
    /// Its kind: `bridge`, `bond` or `team`.
    pub kind: &'static str,
}

impl Membership {
    /// The membership of the link of this name; `None`: the link is on its own, or in a VRF.
    pub fn of(name: &str, links: &[Link]) -> Option<Self> {
        let master = links.iter().find(|link| link.name == name)?.master?;
        let master = &links.iter().find(|link| link.ifindex == master)?.name;
        let kind = stacked(master).ok()??;
        Some(Self { member: name.to_owned(), master: master.clone(), kind })
    }
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { member, master, kind } = self;
        write!(
            f,
            "{member} is a member of the {kind} {master}, which has its addresses, routes and neighbours, so xvs cannot send \
             through it; take it out (`ip link set dev {member} nomaster`) and give it the addresses and routes of {master}"
        )
    }
}
