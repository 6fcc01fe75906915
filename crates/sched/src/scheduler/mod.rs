//! The schedulers, by name.
//!
//! The control plane looks up a scheduler when a service is configured or its destinations change. `interface.rs`
//! defines the interface of a scheduler; each scheduler is in the file with its name.

pub(crate) mod candidates;
pub(crate) mod flags;
pub(crate) mod interface;
#[cfg(test)]
pub(crate) mod testing;

pub use self::candidates::{Candidates, Load};
pub use self::flags::Flags;
pub(crate) use self::interface::Kind;
pub use self::interface::{Change, Choice, FullShare, Request, Reserved, Scheduler, Setup, State};
use crate::destination::Weight;
pub use crate::memory::{Memory, Tuning};
use crate::{dh, fo, lblc, lblcr, lc, mh, none, nq, ovf, rr, sed, sh, twos, wlc, wrr};

/// Every scheduler in alphabetical order.
const SCHEDULERS: &[Kind] = &[
    dh::KIND,
    fo::KIND,
    lblc::KIND,
    lblcr::KIND,
    lc::KIND,
    mh::KIND,
    none::KIND,
    nq::KIND,
    ovf::KIND,
    rr::KIND,
    sed::KIND,
    sh::KIND,
    twos::KIND,
    wlc::KIND,
    wrr::KIND,
];

fn kind(name: &str) -> Option<&'static Kind> {
    SCHEDULERS.iter().find(|kind| kind.name == name)
}

/// Builds the scheduler with this name. `None` if the name is unknown.
pub fn build(name: &str, setup: &Setup<'_>) -> Option<Box<dyn Scheduler>> {
    kind(name).map(|kind| (kind.build)(setup))
}

/// The state of the named scheduler after a change to its service's destinations, from the state before it and the
/// weights after it, in IPVS's order.
pub fn carry(name: &str, state: State, change: Change, weights: &mut dyn Iterator<Item = Weight>) -> State {
    kind(name).map_or(state, |kind| (kind.carry)(state, change, weights))
}

/// Maximum number of destinations that the named scheduler supports.
pub fn destinations_max(name: &str) -> usize {
    kind(name).map_or(usize::MAX, |kind| kind.destinations_max)
}

/// The share of new connections that a destination gets after its slow start; `None` if the scheduler has no slow
/// start.
pub fn full_share(name: &str) -> Option<FullShare> {
    kind(name)?.full_share
}

/// The names of all schedulers.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCHEDULERS.iter().map(|kind| kind.name)
}
