//! The other end of a veth, which may be in another network namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::{io, thread};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::Netlink;

/// Calls `look` with the interface name of the peer of the veth `ifindex`, on a thread in the peer's network namespace;
/// the second argument is the name of that namespace, `None` if it is this one. Returns `None` if the peer is in a
/// namespace without a name (`ip netns`).
///
/// # Errors
/// Those of netlink and of `look`.
pub fn at_peer<T: Send>(
    netlink: &mut Netlink,
    ifindex: u32,
    look: impl FnOnce(String, Option<String>) -> io::Result<T> + Send,
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
        return name(netlink, peer)?.map(|name| look(name, None)).transpose();
    };
    let Some((namespace, called)) = namespace(netlink, number)? else { return Ok(None) };
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            name(&mut Netlink::open()?, peer)?.map(|name| look(name, Some(called))).transpose()
        });
        inside.join().unwrap_or(Ok(None))
    })
}

/// The namespace that has this number here, and its name.
fn namespace(netlink: &mut Netlink, number: i32) -> io::Result<Option<(File, String)>> {
    for entry in fs::read_dir(NAMESPACES)?.flatten() {
        // One that is being made or removed cannot be opened.
        let Ok(namespace) = File::open(entry.path()) else { continue };
        let mut question = NsidMessage::default();
        question.attributes = vec![NsidAttribute::Fd(namespace.as_raw_fd() as u32)];
        let answers = netlink.get(RouteNetlinkMessage::GetNsId(question)).unwrap_or_default();
        let is_it = answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewNsId(answer) => answer.attributes.contains(&NsidAttribute::Id(number)),
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
    let mut question = LinkMessage::default();
    question.header.index = ifindex;
    let answers = netlink.get(RouteNetlinkMessage::GetLink(question))?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(message),
        _ => None,
    }))
}

/// Where `ip netns` names them.
const NAMESPACES: &str = "/run/netns";
