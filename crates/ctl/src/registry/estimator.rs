//! Estimator: the totals and rates of a counter that listings show. Totals count from the last zeroing.
//!
//! Counters are sampled every [`INTERVAL`]; between two samples listings show the same numbers, as in IPVS. The
//! arithmetic is that of IPVS in integers, so the rates agree to the last digit. Source: ipvs-behaviour, section 8.

use std::time::Duration;

use xvs_dataplane::counters::StatsValues;
use xvs_model::report::listing::{Rates, Stats};

/// Time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Totals and rates of one service, of one destination, or of all services.
#[derive(Debug, Clone, Default)]
pub struct Estimator {
    seen: StatsValues,
    base: StatsValues,
    /// Averages in fixed point: packets and connections times 1024, bytes times 32.
    average: [i64; 5],
}

impl Estimator {
    /// An estimator for counters that had this value before, which it shows at once.
    pub fn resumed(now: StatsValues) -> Self {
        Self { seen: now, ..Self::default() }
    }

    /// The count since the last zeroing.
    pub fn since_zero(&self, now: StatsValues) -> StatsValues {
        now - self.base
    }

    /// Takes this number of samples of the counters, at least one, which share the count since the last one.
    pub fn tick(&mut self, now: StatsValues, samples: u32) {
        let new = fields(now - self.seen);
        for (at, average) in self.average.iter_mut().enumerate() {
            let (delta, samples) = (new[at] as i64, i64::from(samples));
            for sample in 0..samples {
                let delta = if sample == 0 { delta / samples + delta % samples } else { delta / samples };
                *average += ((delta << SCALE[at].delta_shift) - *average) >> 2;
            }
        }
        self.seen = now;
    }

    /// Shows zeroes from the last sample on.
    pub fn zero(&mut self) {
        self.base = self.seen;
        self.average = [0; 5];
    }

    /// The totals to show.
    pub fn stats(&self) -> Stats {
        totals(self.seen - self.base)
    }

    /// The rates to show, per second.
    pub fn rates(&self) -> Rates {
        let [connections, in_packets, out_packets, in_bytes, out_bytes] = std::array::from_fn(|at| {
            let Scale { round, shown_shift, .. } = SCALE[at];
            ((self.average[at] + round) >> shown_shift).max(0) as u64
        });
        Rates { connections, in_packets, out_packets, in_bytes, out_bytes }
    }
}

/// Counted values as reports show them.
pub fn totals(counted: StatsValues) -> Stats {
    let StatsValues { connections, in_packets, out_packets, in_bytes, out_bytes } = counted;
    Stats { connections, in_packets, out_packets, in_bytes, out_bytes }
}

struct Scale {
    delta_shift: u32,
    round: i64,
    shown_shift: u32,
}

const PACKETS: Scale = Scale { delta_shift: 9, round: 511, shown_shift: 10 };
const BYTES: Scale = Scale { delta_shift: 4, round: 15, shown_shift: 5 };
const SCALE: [Scale; 5] = [PACKETS, PACKETS, PACKETS, BYTES, BYTES];

pub(super) fn fields(values: StatsValues) -> [u64; 5] {
    let StatsValues { connections, in_packets, out_packets, in_bytes, out_bytes } = values;
    [connections, in_packets, out_packets, in_bytes, out_bytes]
}

#[cfg(test)]
mod tests {
    use crate::registry::estimator::*;

    fn connections(connections: u64) -> StatsValues {
        StatsValues { connections, ..StatsValues::default() }
    }

    /// The example of ipvs-behaviour, section 8.
    #[test]
    fn rates_rise_and_fall_as_those_of_the_kernel() {
        let mut estimator = Estimator::default();
        let mut shown = Vec::new();
        for tick in 1..=12 {
            estimator.tick(connections(200 * tick.min(6)), 1);
            shown.push(estimator.rates().connections);
        }
        assert_eq!(shown, [25, 44, 58, 68, 76, 82, 62, 46, 35, 26, 20, 15]);
    }

    #[test]
    fn samples_taken_at_once_show_the_rates_of_an_even_load_as_single_ones_do() {
        let mut single = Estimator::default();
        let mut at_once = Estimator::default();
        for second in (10..=40).step_by(10) {
            (second - 10..second)
                .step_by(2)
                .for_each(|second| single.tick(connections(100 * (second + 2)), 1));
            at_once.tick(connections(100 * second), 5);
            assert_eq!(at_once.average, single.average);
        }
        assert_eq!(at_once.rates().connections, 100);
    }

    #[test]
    fn zeroing_rebases_the_totals_and_clears_the_rates() {
        let mut estimator = Estimator::default();
        estimator.tick(connections(200), 1);
        estimator.zero();
        assert_eq!((estimator.stats().connections, estimator.rates().connections), (0, 0));
        estimator.tick(connections(207), 1);
        assert_eq!(estimator.stats().connections, 7);
    }
}
