//! Weighted random choice of the less loaded of two destinations (`twos`).
//!
//! Runs once for each new connection. Draws two usable destinations by weight, independently, and takes the second if
//! its overhead-to-weight ratio is lower than the first's. A draw is a number from 0 to the sum of the usable weights,
//! both included, so the first destination in order is drawn a little more often than its weight suggests. The draws
//! are the request's random bits, scaled: the upper half for the first draw, the lower half for the second. Stateless.
//! Cost: two passes over the service's destinations.

use crate::account::{Account, Certainty};
use crate::ratio::{OVERHEAD, Share};
use crate::scheduler::candidates::{Candidates, Load};
use crate::scheduler::interface::{Choice, Kind, Request, Scheduler, State};

pub(crate) const KIND: Kind = Kind::new("twos", |_| Box::new(Twos));

struct Twos;

impl Scheduler for Twos {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let usable = (0..candidates.len()).filter(|position| candidates.usable(*position));
        let sum: u64 = usable.clone().map(|position| u64::from(candidates.weight(position).0)).sum();
        let mut left =
            [request.random >> 32, request.random & u64::from(u32::MAX)].map(|bits| scaled(bits, sum));
        let mut drawn = [None; 2];
        for position in usable {
            for (left, drawn) in left.iter_mut().zip(&mut drawn) {
                *left = left.saturating_sub(candidates.weight(position).0.into());
                if *left == 0 && drawn.is_none() {
                    *drawn = Some(position);
                }
            }
            if drawn.iter().all(Option::is_some) {
                break;
            }
        }
        let position = match drawn {
            [Some(first), Some(second)] => Some(lighter(first, second, candidates)),
            [first, second] => first.or(second),
        };
        Choice { position, state }
    }

    fn account(&self, _: State, _: &Request, candidates: &dyn Candidates) -> Account {
        let rule = "of two that are drawn at random, by their weights, the one with the lower \
                    (256 × active + inactive connections) ÷ weight";
        let account =
            Account::new(KIND.name, rule, candidates.len()).with_shares(OVERHEAD, candidates, Load::overhead);
        Account { certainty: Certainty::Chance, ..account }
    }
}

/// 32 random bits as a number from 0 to `most`.
fn scaled(bits: u64, most: u64) -> u64 {
    ((u128::from(bits) * (u128::from(most) + 1)) >> 32) as u64
}

/// The second destination if its overhead-to-weight ratio is lower than the first's; otherwise the first.
fn lighter(first: usize, second: usize, candidates: &dyn Candidates) -> usize {
    let second_share = Share::of(second, candidates, Load::overhead);
    if second_share.is_below(Share::of(first, candidates, Load::overhead)) { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{List, from};

    /// The choice for these draws, which range up to `most`.
    fn drawing(first: u64, second: u64, most: u64, list: &List) -> Option<usize> {
        let bits = |draw: u64| ((draw << 32) / (most + 1)) + 1;
        assert_eq!([first, second].map(|draw| scaled(bits(draw), most)), [first, second]);
        let request = Request { random: bits(first) << 32 | bits(second), ..from("192.0.2.1:1024") };
        Twos.pick(State(0), &request, list).position
    }

    #[test]
    fn of_two_drawn_the_second_is_taken_if_it_carries_less_for_its_weight() {
        let list = List::weights(&[1, 1, 1]).loads(&[(2, 0), (0, 0), (1, 0)]);
        assert_eq!(drawing(1, 3, 3, &list), Some(2));
        assert_eq!(drawing(3, 1, 3, &list), Some(2));
        assert_eq!(drawing(1, 2, 3, &list), Some(1));
        let equal = List::weights(&[1, 2]).loads(&[(1, 0), (2, 0)]);
        assert_eq!((drawing(1, 3, 3, &equal), drawing(3, 1, 3, &equal)), (Some(0), Some(1)));
    }

    #[test]
    fn a_draw_of_nothing_is_the_first_and_unusable_ones_are_not_drawn() {
        let list = List::weights(&[0, 1, 2, 1]).overloaded(1);
        assert_eq!(
            [0, 1, 2, 3].map(|draw| drawing(draw, draw, 3, &list)),
            [Some(2), Some(2), Some(2), Some(3)]
        );
        assert_eq!(drawing(0, 0, 0, &List::weights(&[0])), None);
    }

    #[test]
    fn draws_follow_the_weights() {
        let list = List::weights(&[1, 2, 3]);
        let mut taken = [0u32; 3];
        for draw in 0..6000u64 {
            let random = draw << 32 | draw << 16;
            let bits = (random >> 32) * (u64::from(u32::MAX) / 6000);
            let request = Request { random: bits << 32 | bits, ..from("192.0.2.1:1024") };
            taken[Twos.pick(State(0), &request, &list).position.unwrap()] += 1;
        }
        // Among seven numbers, 0 and 1 draw the first destination, 2 and 3 the second.
        for (count, share) in taken.into_iter().zip([2, 2, 3]) {
            assert!(count.abs_diff(6000 * share / 7) < 5, "{taken:?}");
        }
    }
}
