//! Overhead-to-weight ratios, which `wlc` and similar schedulers compare.

use crate::scheduler::candidates::{Candidates, Load};

/// The name of [`Load::overhead`] in explanations.
pub(crate) const OVERHEAD: &str = "overhead";

/// The usable position with the lowest overhead-to-weight ratio among `positions`; the first wins a tie.
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

/// The overhead of a destination, and its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) overhead: i64,
    weight: i64,
}

impl Share {
    /// The share of one position.
    pub(crate) fn of(position: usize, candidates: &dyn Candidates, overhead: impl Fn(Load) -> i64) -> Self {
        let weight = i64::from(candidates.weight(position).0);
        Self { overhead: overhead(candidates.load(position)), weight }
    }

    /// Whether this ratio is lower. Ratios are compared by cross multiplication, so that rounding cannot make two of
    /// them equal.
    pub(crate) fn is_below(self, other: Self) -> bool {
        other.overhead.saturating_mul(self.weight) > self.overhead.saturating_mul(other.weight)
    }

    /// The ratio, rounded; for weight 0 the overhead.
    pub(crate) fn ratio(self) -> f64 {
        self.overhead as f64 / self.weight.max(1) as f64
    }
}
