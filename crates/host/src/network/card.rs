//! Losses of network cards: packets that an interface counts as lost before they reached the kernel.
//!
//! In zero-copy mode no socket counts these packets. The control thread reads the counts every few seconds. Cost: a
//! request to the kernel for each interface. Source: `struct rtnl_link_stats64` (linux/if_link.h) and the drivers' use
//! of it.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, Stats64};

use super::netlink::Netlink;

/// Packets that an interface has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CardLosses {
    /// The card had no free frame, or no internal buffer space (`rx_missed_errors`, `rx_fifo_errors`).
    pub missed: u64,
    /// The card does not accept packets of this length, which exceeds its buffers (`rx_length_errors`,
    /// `rx_over_errors`).
    pub length: u64,
}

impl CardLosses {
    /// The losses between an earlier reading and this one; a driver may restart at 0.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            missed: difference(self.missed, earlier.missed),
            length: difference(self.length, earlier.length),
        }
    }
}

fn difference(now: u64, earlier: u64) -> u64 {
    now.checked_sub(earlier).unwrap_or(now)
}

impl From<&Stats64> for CardLosses {
    fn from(stats: &Stats64) -> Self {
        Self {
            missed: stats.rx_missed_errors + stats.rx_fifo_errors,
            length: stats.rx_length_errors + stats.rx_over_errors,
        }
    }
}

/// The losses of interfaces since the first reading of each.
#[derive(Debug)]
pub struct CardWatch {
    netlink: Netlink,
    /// The last reading and the losses since the first, by interface index.
    known: BTreeMap<u32, (CardLosses, CardLosses)>,
}

impl CardWatch {
    /// For interfaces in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel has no more descriptors.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, known: BTreeMap::new() })
    }

    /// The losses of the interfaces with these indices, in order. The losses of one that is gone do not change. `short`
    /// returns the number of packets of an interface that were too short, which `rx_length_errors` includes.
    pub fn look(&mut self, links: &[u32], short: impl Fn(u32) -> u64) -> Vec<CardLosses> {
        let mut losses = Vec::new();
        for &ifindex in links {
            let mut now = self.read(ifindex).ok().flatten();
            if let Some(now) = now.as_mut().filter(|now| now.length > 0) {
                now.length = now.length.saturating_sub(short(ifindex));
            }
            let (before, sum) =
                self.known.entry(ifindex).or_insert((now.unwrap_or_default(), Default::default()));
            if let Some(now) = now {
                let more = now.since(std::mem::replace(before, now));
                *sum = CardLosses { missed: sum.missed + more.missed, length: sum.length + more.length };
            }
            losses.push(*sum);
        }
        losses
    }

    fn read(&mut self, ifindex: u32) -> io::Result<Option<CardLosses>> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        for reply in self.netlink.get(RouteNetlinkMessage::GetLink(request))? {
            let RouteNetlinkMessage::NewLink(message) = reply else { continue };
            for attribute in message.attributes {
                if let LinkAttribute::Stats64(stats) = attribute {
                    return Ok(Some((&stats).into()));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_between_two_readings_also_when_a_driver_begins_anew() {
        let [first, second] = [10, 12].map(|missed| CardLosses { missed, length: 3 });
        assert_eq!(second.since(first), CardLosses { missed: 2, length: 0 });
        let anew = CardLosses { missed: 1, length: 4 };
        assert_eq!(anew.since(second), CardLosses { missed: 1, length: 1 });
    }

    #[test]
    fn what_was_lost_before_the_first_look_and_by_an_interface_that_is_gone_is_nobodys() {
        let mut watch = CardWatch::open().unwrap();
        assert_eq!(watch.look(&[1, u32::MAX], |_| 0), [CardLosses::default(); 2]);
    }
}
