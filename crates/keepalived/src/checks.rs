//! The checkers of a real server: what is asked of it, how often, and when it counts as down.
//!
//! Pure. Source: keepalived's behaviour as it is written down (section 4). Not here: how they are read (`checkers.rs`),
//! and asking.

use std::time::Duration;

use xvs_model::check::{Probe, Timing};

use crate::blocks::Block;
use crate::values::Faults;

/// Settings of [`Timing`] as far as they are given; what is not is taken from around.
#[derive(Debug, Clone, Copy, Default)]
pub struct TimingOptions {
    interval: Option<Duration>,
    retry_interval: Option<Duration>,
    timeout: Option<Duration>,
    retry: Option<u32>,
    rise: Option<u32>,
    warmup: Option<Duration>,
    begins_down: Option<bool>,
}

impl TimingOptions {
    /// Takes a statement that is one of them. `least_retry` is what `retry` may be at least here.
    pub fn take(&mut self, block: &Block, least_retry: u32, faults: &mut Faults) -> bool {
        let above_zero = Duration::from_micros(1);
        match block.keyword() {
            "delay_loop" => set(&mut self.interval, faults.time(block, above_zero)),
            "delay_before_retry" => set(&mut self.retry_interval, faults.time(block, Duration::ZERO)),
            "connect_timeout" => set(&mut self.timeout, faults.time(block, above_zero)),
            "retry" => set(&mut self.retry, faults.number_u32(block, least_retry..=u32::MAX)),
            // keepalived has no such word and takes 1.
            "rise" => set(&mut self.rise, faults.number_u32(block, 1..=u32::MAX)),
            "warmup" => set(&mut self.warmup, faults.time(block, Duration::ZERO)),
            "alpha" => set(&mut self.begins_down, faults.switch(block)),
            _ => return false,
        }
        true
    }

    /// These, and what they leave open from around.
    #[must_use]
    pub fn or(self, around: Self) -> Self {
        Self {
            interval: self.interval.or(around.interval),
            retry_interval: self.retry_interval.or(around.retry_interval),
            timeout: self.timeout.or(around.timeout),
            retry: self.retry.or(around.retry),
            rise: self.rise.or(around.rise),
            warmup: self.warmup.or(around.warmup),
            begins_down: self.begins_down.or(around.begins_down),
        }
    }

    /// From one check to the next, if it is said.
    pub fn interval(self) -> Option<Duration> {
        self.interval
    }

    /// With what each kind of check has if nothing is said.
    pub(super) fn timing(self, probe: &Probe) -> Timing {
        let interval = self.interval.unwrap_or(INTERVAL);
        let (retry, retry_interval) = match probe {
            Probe::Http(..) => (1, Duration::from_secs(3)),
            Probe::Dns(..) => (3, interval),
            Probe::Script(..) | Probe::File(..) => (0, Duration::from_secs(1)),
            Probe::Tcp(_) | Probe::Smtp(..) | Probe::Udp(..) | Probe::Ping(_) => (1, Duration::from_secs(1)),
        };
        let (retry, rise) = (self.retry.unwrap_or(retry), self.rise.unwrap_or(1));
        // A file tells once what it says, when it changes.
        let (retry, rise) = if matches!(probe, Probe::File(..)) { (0, 1) } else { (retry, rise) };
        Timing {
            interval,
            retry_interval: self.retry_interval.unwrap_or(retry_interval),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            fall: retry.saturating_add(1),
            rise,
            warmup: self.warmup.unwrap_or(interval),
            // What a file says is known from the start.
            begins_down: self.begins_down.unwrap_or(false) && !matches!(probe, Probe::File(..)),
        }
    }
}

/// From one check to the next, if nothing is said.
pub(super) const INTERVAL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sets what was understood.
pub(super) fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}
