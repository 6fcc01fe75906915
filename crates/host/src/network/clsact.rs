//! The qdisc `clsact`, with which programs for traffic control are attached to an interface.
//!
//! Runs when the first such program for an interface is needed. The qdisc stays, because other programs may use it,
//! too. The older qdisc `ingress` uses the same slot and has no egress.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};

use super::netlink::Netlink;

/// Provides the qdisc on the interface with this index in the calling thread's network namespace.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProvideClsact {
    /// The index.
    pub interface: u32,
}

impl Task for ProvideClsact {
    const NAME: &'static str = "provide-clsact";
    type Done = ();

    /// The error may be that another qdisc occupies the slot.
    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        provide(self.interface).map(|()| ((), Vec::new()))
    }
}

fn provide(interface: u32) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut message = TcMessage::with_index(interface.cast_signed());
    for reply in netlink.dump(RouteNetlinkMessage::GetQueueDiscipline(message.clone()))? {
        let RouteNetlinkMessage::NewQueueDiscipline(found) = reply else { continue };
        if found.header.index != message.header.index || found.header.parent != TcHandle::CLSACT {
            continue;
        }
        return match found.attributes.contains(&TcAttribute::Kind(CLSACT.to_owned())) {
            true => Ok(()),
            false => Err(io::Error::other(
                "the qdisc `ingress` is in the place of `clsact`; use `clsact` for its filters \
                 (`tc qdisc del dev INTERFACE ingress; tc qdisc add dev INTERFACE clsact`)",
            )),
        };
    }
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    netlink.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

const CLSACT: &str = "clsact";
