//! The changes of a reload of the configuration, as a line for the operator.

use std::fmt;

/// The differences between a configuration and the previous one.
#[derive(Default)]
pub(super) struct ReloadSummary {
    pub(super) virtual_servers: Count,
    pub(super) checks: Count,
}

/// The number of items, of new ones among them, and of old ones that are gone.
#[derive(Default)]
pub(super) struct Count {
    pub(super) all: usize,
    new: usize,
    pub(super) gone: usize,
}

impl Count {
    /// Counts an item of the new configuration.
    pub(super) fn count(&mut self, was_there: bool) {
        self.all += 1;
        self.new += usize::from(!was_there);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} new, {} gone)", self.all, self.new, self.gone)
    }
}

impl fmt::Display for ReloadSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtual servers: {}, checks: {}", self.virtual_servers, self.checks)
    }
}
