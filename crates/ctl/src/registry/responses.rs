//! The times until a destination's first reply, as reports show them.

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::DestinationLive;
use xvs_model::report::response::ResponseTimes;

/// The times of a destination since it was added, at a former reading.
pub(super) struct Look {
    pub(super) at: Millis,
    pub(super) times: ResponseTimes,
}

/// The times that the workers have counted so far.
pub fn responses(live: &DestinationLive) -> ResponseTimes {
    let (ranges, sum_micros) = live.responses.sum();
    ResponseTimes::new(&ranges, sum_micros)
}

#[cfg(test)]
mod tests {
    use xvs_dataplane::counters::RESPONSE_UNIT_MICROS;
    use xvs_model::report::response::FIRST_BOUND_MICROS;

    #[test]
    fn the_report_has_the_ranges_of_the_workers() {
        assert_eq!(RESPONSE_UNIT_MICROS, FIRST_BOUND_MICROS);
    }
}
