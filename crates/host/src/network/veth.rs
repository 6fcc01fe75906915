//! Access to the peer of a veth in its network namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::{io, thread};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::Netlink;

/// Calls `visit` with the interface name of the peer of the veth `ifindex`, on a thread in the peer's network
/// namespace; the second argument is the name of that namespace, `None` if it is this one. Returns `None` if the peer
/// is in a namespace without a name (`ip netns`).
///
/// # Errors
/// Those of netlink and of `visit`.
pub fn at_peer<T: Send>(
    netlink: &mut Netlink,
    ifindex: u32,
    visit: impl FnOnce(String, Option<String>) -> io::Result<T> + Send,
) -> io::Result<Option<T>> {
    let Some(ours) = link(netlink, ifindex)? else { return Ok(None) };
    let (mut peer, mut number) = (None, None);
    for attribute in &ours.attributes {
        match attribute {
            LinkAttribute::Link(ifindex) => peer = Some(*ifindex),
            LinkAttribute::LinkNetNsId(id) => number = Some(*id),
            _ => {}
        }
    }
    let Some(peer) = peer else { return Ok(None) };
    let Some(number) = number else {
        return name(netlink, peer)?.map(|name| visit(name, None)).transpose();
    };
    let Some((namespace, called)) = namespace(netlink, number)? else { return Ok(None) };
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            name(&mut Netlink::open()?, peer)?.map(|name| visit(name, Some(called))).transpose()
        });
        inside.join().unwrap_or(Ok(None))
    })
}

/// The namespace that has this number in the present namespace, and its name.
fn namespace(netlink: &mut Netlink, number: i32) -> io::Result<Option<(File, String)>> {
    for entry in fs::read_dir(NAMESPACES)?.flatten() {
        // A namespace that is being created or removed cannot be opened.
        let Ok(namespace) = File::open(entry.path()) else { continue };
        let mut request = NsidMessage::default();
        request.attributes = vec![NsidAttribute::Fd(namespace.as_raw_fd() as u32)];
        let replies = netlink.get(RouteNetlinkMessage::GetNsId(request)).unwrap_or_default();
        let is_it = replies.iter().any(|reply| match reply {
            RouteNetlinkMessage::NewNsId(reply) => reply.attributes.contains(&NsidAttribute::Id(number)),
            _ => false,
        });
        if is_it {
            return Ok(Some((namespace, entry.file_name().to_string_lossy().into_owned())));
        }
    }
    Ok(None)
}

fn name(netlink: &mut Netlink, ifindex: u32) -> io::Result<Option<String>> {
    Ok(link(netlink, ifindex)?.and_then(|message| {
        message.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })
    }))
}

fn link(netlink: &mut Netlink, ifindex: u32) -> io::Result<Option<LinkMessage>> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    let replies = netlink.get(RouteNetlinkMessage::GetLink(request))?;
    Ok(replies.into_iter().find_map(|reply| match reply {
        RouteNetlinkMessage::NewLink(message) => Some(message),
        _ => None,
    }))
}

/// The folder in which `ip netns` has the names of namespaces.
const NAMESPACES: &str = "/run/netns";
