//! The time until a real server's first reply: a histogram, and its summary.
//!
//! Measured from a client's SYN to the SYN+ACK, and from the first UDP datagram to the first one back. Packets are
//! measured in `burst/handshake.rs` of `dataplane`.

use serde::{Deserialize, Serialize};

/// The upper bound of the first range, in microseconds; each other range ends at twice the bound of the one before.
pub const FIRST_BOUND_MICROS: u64 = 64;

/// The times of a real server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResponseTimes {
    /// The number of connections in each range: up to 64 microseconds, up to 128, and so on until 8.4 seconds, then
    /// longer ones. Empty ranges at the end are left out.
    pub connections: Vec<u64>,
    /// The sum of all times, in microseconds.
    pub sum_micros: u64,
}

impl ResponseTimes {
    /// The times with these numbers in the ranges.
    pub fn new(ranges: &[u64], sum_micros: u64) -> Self {
        let used = ranges.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
        Self { connections: ranges[..used].to_vec(), sum_micros }
    }

    /// Whether no connection was measured.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// The number of connections that were measured.
    pub fn count(&self) -> u64 {
        self.connections.iter().sum()
    }

    /// The times since an earlier reading. If a count has decreased, it restarted in between.
    pub fn since(&self, earlier: &Self) -> Self {
        if self.connections.len() < earlier.connections.len() {
            return self.clone();
        }
        let mut counts = self.connections.clone();
        for (count, before) in counts.iter_mut().zip(&earlier.connections) {
            let Some(since) = count.checked_sub(*before) else { return self.clone() };
            *count = since;
        }
        Self::new(&counts, self.sum_micros.saturating_sub(earlier.sum_micros))
    }

    /// These times and others.
    pub fn with(mut self, others: &Self) -> Self {
        let longer = self.connections.len().max(others.connections.len());
        self.connections.resize(longer, 0);
        self.connections.iter_mut().zip(&others.connections).for_each(|(sum, count)| *sum += count);
        self.sum_micros += others.sum_micros;
        self
    }

    /// The time that this part of the connections, from 0 to 1, does not exceed, in microseconds: as Prometheus'
    /// `histogram_quantile` estimates it, evenly within a range. `None`: no connection was measured.
    pub fn quantile_micros(&self, part: f64) -> Option<f64> {
        let rank = part * self.count() as f64;
        let mut below = 0.0;
        for (range, count) in self.connections.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= rank {
                let upper = (FIRST_BOUND_MICROS << range) as f64;
                let lower = if range == 0 { 0.0 } else { upper / 2.0 };
                return Some(lower + (upper - lower) * ((rank - below) / count));
            }
            below += count;
        }
        None
    }

    /// The summary; `None`: no connection was measured.
    pub fn summary(&self) -> Option<ResponseSummary> {
        let [median, ninety_ninth] = [0.5, 0.99].map(|part| self.quantile_micros(part));
        Some(ResponseSummary {
            connections: self.count(),
            median_micros: median?.round() as u64,
            percentile_99_micros: ninety_ninth?.round() as u64,
        })
    }
}

/// The times of a real server in the last full minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResponseSummary {
    /// The number of connections that were measured.
    pub connections: u64,
    /// The time that half of them did not exceed, in microseconds: an estimate within a range of the histogram.
    pub median_micros: u64,
    /// The time that 99 of 100 did not exceed, in microseconds, as the median.
    pub percentile_99_micros: u64,
}

/// A time in at most five characters and a unit, such as `1.2ms`.
pub fn short_time(micros: u64) -> String {
    match micros {
        ..1000 => format!("{micros}us"),
        1000..9_950 => format!("{:.1}ms", micros as f64 / 1e3),
        9_950..999_500 => format!("{:.0}ms", micros as f64 / 1e3),
        _ => format!("{:.1}s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_estimated_within_its_range_as_prometheus_does() {
        // histogram_quantile of le="0.000064" 2, le="0.000128" 2, le="0.000256" 10, by hand.
        let times = ResponseTimes::new(&[2, 0, 8, 0], 1500);
        assert_eq!(times.connections, [2, 0, 8]);
        assert_eq!(times.quantile_micros(0.1), Some(32.0));
        assert_eq!(times.quantile_micros(0.5), Some(128.0 + 128.0 * 3.0 / 8.0));
        assert_eq!(times.quantile_micros(1.0), Some(256.0));
        let summary = ResponseSummary { connections: 10, median_micros: 176, percentile_99_micros: 254 };
        assert_eq!(times.summary(), Some(summary));
        assert_eq!(ResponseTimes::default().summary(), None);
    }

    #[test]
    fn what_two_looks_differ_in_is_what_came_between_and_all_after_a_new_begin() {
        let [earlier, later] =
            [[1, 5].as_slice(), &[1, 7, 0, 2]].map(|ranges| ResponseTimes::new(ranges, 100));
        let between = later.since(&earlier);
        assert_eq!((between.connections.as_slice(), between.sum_micros), ([0, 2, 0, 2].as_slice(), 0));
        assert_eq!(later.since(&later), ResponseTimes::default());
        for anew in [earlier.clone(), ResponseTimes::new(&[3], 9), ResponseTimes::new(&[0, 1, 0, 2], 9)] {
            assert_eq!(anew.since(&later), anew);
        }
        assert_eq!(earlier.with(&later).connections, [2, 12, 0, 2]);
    }

    #[test]
    fn a_time_has_few_digits_and_its_unit() {
        let times = [7, 999, 1000, 9_949, 9_950, 999_499, 999_500, 8_400_000].map(short_time);
        assert_eq!(times, ["7us", "999us", "1.0ms", "9.9ms", "10ms", "999ms", "1.0s", "8.4s"]);
    }
}
