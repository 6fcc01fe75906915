//! The timing of checks: interval, timeout, retries, rise, warmup.
//!
//! Pure. Source: keepalived-behaviour, section 4.

use std::time::Duration;

use xvs_model::health_checks::check::{Probe, Timing};

use crate::blocks::Block;
use crate::values::Faults;

/// The configured settings of a [`Timing`]; `None` means inherited or default.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimingOptions {
    pub(super) interval: Option<Duration>,
    retry_interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    retry: Option<u32>,
    rise: Option<u32>,
    warmup: Option<Duration>,
    begins_down: Option<bool>,
}

impl TimingOptions {
    /// Applies a statement. `least_retry` is the minimum of `retry` in this block. Returns whether the keyword is
    /// known.
    pub fn apply(&mut self, block: &Block, least_retry: u32, faults: &mut Faults) -> bool {
        let above_zero = Duration::from_micros(1);
        match block.keyword() {
            "delay_loop" => set(&mut self.interval, faults.time(block, above_zero)),
            "delay_before_retry" => set(&mut self.retry_interval, faults.time(block, Duration::ZERO)),
            "connect_timeout" => set(&mut self.timeout, faults.time(block, above_zero)),
            "retry" => set(&mut self.retry, faults.number(block, least_retry..=u32::MAX)),
            // keepalived has no such keyword; its value is 1.
            "rise" => set(&mut self.rise, faults.number(block, 1..=u32::MAX)),
            "warmup" => set(&mut self.warmup, faults.time(block, Duration::ZERO)),
            "alpha" => set(&mut self.begins_down, faults.switch(block)),
            _ => return false,
        }
        true
    }

    /// These settings; those that are not configured are inherited.
    #[must_use]
    pub fn or(self, inherited: Self) -> Self {
        Self {
            interval: self.interval.or(inherited.interval),
            retry_interval: self.retry_interval.or(inherited.retry_interval),
            timeout: self.timeout.or(inherited.timeout),
            retry: self.retry.or(inherited.retry),
            rise: self.rise.or(inherited.rise),
            warmup: self.warmup.or(inherited.warmup),
            begins_down: self.begins_down.or(inherited.begins_down),
        }
    }

    /// The timing, with the defaults of each kind of check.
    pub(super) fn timing(self, probe: &Probe) -> Timing {
        let interval = self.interval.unwrap_or(INTERVAL);
        let (retry, retry_interval) = match probe {
            Probe::Http(..) => (1, Duration::from_secs(3)),
            Probe::Dns(..) => (3, interval),
            Probe::Script(..) | Probe::File(..) | Probe::Agent(..) => (0, Duration::from_secs(1)),
            Probe::Tcp(_) | Probe::ThroughVip(_) | Probe::Smtp(..) | Probe::Udp(..) | Probe::Ping(_) => {
                (1, Duration::from_secs(1))
            }
        };
        // The content of a file or the reply of an agent applies at once, and only that takes a server down.
        let applies_at_once = matches!(probe, Probe::File(..) | Probe::Agent(..));
        Timing {
            interval,
            retry_interval: self.retry_interval.unwrap_or(retry_interval),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            fall: if applies_at_once { 1 } else { self.retry.unwrap_or(retry).saturating_add(1) },
            rise: if applies_at_once { 1 } else { self.rise.unwrap_or(1) },
            warmup: self.warmup.unwrap_or(interval),
            begins_down: self.begins_down.unwrap_or(false) && !applies_at_once,
        }
    }
}

/// The default interval.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sets a value if it was valid.
pub(super) fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}
