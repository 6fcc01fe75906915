//! Flow offload: whether it is on, and interfaces that refuse packets.
//!
//! `xvs_dataplane::offload` chooses the offloaded flows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xvs_ctl::config::OffloadMode;
use xvs_dataplane::offload::{Offload, Settings};
use xvs_dataplane::steering::Steering;
use xvs_dataplane::steering::losses::{Leaving, Losses};
use xvs_model::report::status::BondMember;
use xvs_xdp::{Attached, Mode};

/// The offload of a running director.
pub(crate) struct Offloading {
    mode: OffloadMode,
    /// The names of interfaces that do not take part.
    excluded: Vec<String>,
    is_on: bool,
    /// The interfaces that accept packets forwarded by the program in native mode, by index, and when the kernel was
    /// queried.
    takers: BTreeSet<u32>,
    asked: Instant,
    flows: Arc<Offload>,
    losses: Losses,
    /// The recent counts, by interface index.
    recent: BTreeMap<u32, Recent>,
    /// Interfaces that have refused too many packets.
    refusing: BTreeSet<u32>,
}

/// An interface's part in the offload.
pub(crate) struct Part {
    /// Whether the program forwards what arrives or leaves on it.
    pub(crate) offloads: bool,
    /// Whether the program runs in generic mode, where any interface takes what it forwards.
    pub(crate) generic: bool,
    /// Whether it takes what the program forwards in native mode.
    pub(crate) takes_redirected: bool,
    /// The reason why the interface does not take part, or only for arriving packets; `None` if it takes part.
    pub(crate) why_not: Option<String>,
}

const REFUSES: &str = "it has refused many packets that the XDP program had forwarded to it; after a restart of xvsd it \
                       is tried again";
const TAKES_NONE: &str = "it takes no packets that an XDP program forwards; veth does after `ethtool -K PEER gro on` at its \
                          other end";
/// Interval of asking the kernel, which costs several system calls for each interface.
const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// An interface refuses too many packets if it refused this many in the last seconds, and more than it sent. A link
/// that is just too slow refuses fewer.
const REFUSED_MIN: f64 = 4.0;
/// The weight of a second's count relative to the next one's.
const DECAY: f64 = 7.0 / 8.0;

/// Packets that were to leave by an interface in the last seconds.
struct Recent {
    /// All of them, until the last reading.
    until: Leaving,
    sent: f64,
    refused: f64,
}

impl Recent {
    fn add(&mut self, now: Leaving) {
        self.sent = self.sent * DECAY + (now.sent - self.until.sent) as f64;
        self.refused = self.refused * DECAY + (now.refused - self.until.refused) as f64;
        self.until = now;
    }

    fn are_too_many(&self) -> bool {
        self.refused >= REFUSED_MIN && self.refused > self.sent
    }
}

impl Offloading {
    /// No flow is offloaded yet.
    ///
    /// # Errors
    /// The kernel cannot map the maps, or count what interfaces refuse.
    pub(crate) fn start(
        mode: OffloadMode,
        excluded: Vec<String>,
        settings: Settings,
        steering: &Steering,
        entries: usize,
    ) -> io::Result<Self> {
        let losses = Losses::follow().map_err(|error| {
            io::Error::other(format!(
                "packets that interfaces refuse cannot be counted ({error}), which needs a kernel with BTF \
                 (CONFIG_DEBUG_INFO_BTF)"
            ))
        })?;
        Ok(Self {
            mode,
            excluded,
            is_on: false,
            takers: BTreeSet::new(),
            asked: Instant::now(),
            flows: steering.offload(entries, settings)?,
            losses,
            recent: BTreeMap::new(),
            refusing: BTreeSet::new(),
        })
    }

    pub(crate) fn flows(&self) -> &Arc<Offload> {
        &self.flows
    }

    /// Turns it on or off for workers whose frames the kernel copies, or not.
    pub(crate) fn follow(&mut self, copies: bool) {
        self.is_on = self.mode == OffloadMode::On || copies;
        self.flows.set_on(self.is_on);
    }

    /// Whether to query the kernel again about the interfaces that accept packets forwarded by the program: it does not
    /// announce changes.
    pub(crate) fn is_ask_due(&self) -> bool {
        self.asked.elapsed() >= ASK_INTERVAL
    }

    /// Queries the kernel about which of these interfaces accept packets forwarded by the program, or tries it.
    pub(crate) fn ask<'a>(&mut self, attached: impl Iterator<Item = &'a Attached>) {
        self.takers = attached
            .filter(|attached| {
                attached.takes_redirected().unwrap_or_else(|| self.has_taken_or_takes(attached))
            })
            .map(Attached::index)
            .collect();
        self.asked = Instant::now();
    }

    /// Whether an interface has taken a frame that the program forwards, or takes one now. Such an interface counts as
    /// taking them, until it refuses too many.
    fn has_taken_or_takes(&mut self, attached: &Attached) -> bool {
        let index = attached.index();
        let is_wanted = self.is_on && !self.excluded.iter().any(|excluded| excluded == attached.interface());
        self.takers.contains(&index)
            || is_wanted && attached.link_address().is_ok_and(|address| self.losses.is_taken(index, address))
    }

    /// The part of an interface in the offload, with its bond if it is a member.
    pub(crate) fn part_of(&self, attached: &Attached, bond: Option<&BondMember>) -> Part {
        let name = attached.interface();
        let ifindex = attached.index();
        let generic = attached.mode() == Mode::Generic;
        let takes_redirected = self.takers.contains(&ifindex);
        let why_none = if !self.is_on {
            Some("the kernel does not copy its packets, so workers are fast; offload = \"on\" offloads all the same".to_owned())
        } else if self.excluded.iter().any(|excluded| excluded == name) {
            Some("`offload_excluded` names it".to_owned())
        } else if let Some(bond) = bond {
            Some(format!("it is a member of {}", bond.name))
        } else if self.refusing.contains(&ifindex) {
            Some(REFUSES.to_owned())
        } else {
            None
        };
        Part {
            offloads: why_none.is_none(),
            generic,
            takes_redirected,
            why_not: why_none.or_else(|| (!takes_redirected && !generic).then(|| TAKES_NONE.to_owned())),
        }
    }

    /// The packets that were to leave on an interface and did not.
    pub(crate) fn lost(&self, ifindex: u32) -> u64 {
        let Leaving { refused, full, .. } = self.losses.of(ifindex);
        refused + full
    }

    /// Reads the refusals of these interfaces since the last reading, a second ago. Returns whether one has refused too
    /// many for the first time.
    pub(crate) fn judge(&mut self, interfaces: &[u32]) -> bool {
        let before = self.refusing.len();
        for &ifindex in interfaces {
            let now = self.losses.of(ifindex);
            let recent = self.recent.entry(ifindex).or_insert(Recent { until: now, sent: 0.0, refused: 0.0 });
            recent.add(now);
            if recent.are_too_many() {
                self.refusing.insert(ifindex);
            }
        }
        self.refusing.len() > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_refuses_more_than_leave_is_used_no_more() {
        let judged = |seconds: &[(u64, u64)]| {
            let (mut recent, mut all) =
                (Recent { until: Leaving::default(), sent: 0.0, refused: 0.0 }, Leaving::default());
            seconds.iter().any(|(sent, refused)| {
                all = Leaving { sent: all.sent + sent, refused: all.refused + refused, full: 0 };
                recent.add(all);
                recent.are_too_many()
            })
        };
        assert!(
            judged(&[(0, 4)])
                && judged(&[(0, 1); 8])
                && judged(&[(1_000_000, 0), (0, 900_000), (0, 900_000)])
        );
        assert!(!judged(&[(0, 3)]) && !judged(&[(1_000_000, 900_000); 100]) && !judged(&[(2, 1); 100]));
    }
}
