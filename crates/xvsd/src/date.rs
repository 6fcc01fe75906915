//! The date, for displayed times and for signatures. Timeouts use the monotonic clock.

use std::time::SystemTime;

use xvs_model::report::event::millis_since_1970;

/// The date, in milliseconds since 1970 (UTC).
pub(crate) fn date_millis() -> u64 {
    millis_since_1970(SystemTime::now())
}

/// The date, in nanoseconds since 1970 (UTC).
pub(crate) fn date_nanos() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
