//! Overhead-to-weight ratios, by which `wlc` and its kin choose.

use crate::scheduler::candidates::{Candidates, Load};

/// How accounts name [`Load::overhead`].
pub(crate) const OVERHEAD: &str = "overhead";

/// Of some positions the usable one with the lowest overhead-to-weight ratio; the first wins a tie.
pub(crate) fn least(
    positions: impl Iterator<Item = usize>,
    candidates: &dyn Candidates,
    overhead: impl Fn(Load) -> i64,
) -> Option<usize> {
    let mut best: Option<(usize, Share)> = None;
    for position in positions.filter(|position| candidates.usable(*position)) {
        let share = Share::of(position, candidates, &overhead);
        if best.is_none_or(|(_, least)| share.is_below(least)) {
            best = Some((position, share));
        }
    }
    best.map(|(position, _)| position)
}

/// What a destination carries, and the weight that it carries it with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) overhead: i64,
    weight: i64,
}

impl Share {
    /// That of one position.
    pub(crate) fn of(position: usize, candidates: &dyn Candidates, overhead: impl Fn(Load) -> i64) -> Self {
        let weight = i64::from(candidates.weight(position).0);
        Self { overhead: overhead(candidates.load(position)), weight }
    }

    /// Whether it is a lower ratio: by cross multiplication, so no division rounds two of them together.
    pub(crate) fn is_below(self, other: Self) -> bool {
        other.overhead.saturating_mul(self.weight) > self.overhead.saturating_mul(other.weight)
    }

    /// The ratio, rounded; of no weight it is the overhead.
    pub(crate) fn ratio(self) -> f64 {
        self.overhead as f64 / self.weight.max(1) as f64
    }
}
