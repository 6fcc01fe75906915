//! The connection timeouts that keepalived.conf sets, and the former values that are restored afterwards.

use xvs_model::config::timeouts::Timeouts;

/// The connection timeouts that a file configures (`lvs_timeouts`); a timeout of 0 is not configured.
#[derive(Clone, Copy)]
pub(super) struct FileTimeouts {
    pub(super) configured: Timeouts,
    /// The timeouts that were in force before the file configured them.
    pub(super) before: Timeouts,
}

impl FileTimeouts {
    /// The timeouts to set for a new file: those that it configures, and the former value of each timeout that only the
    /// old file configured.
    pub(super) fn update(&mut self, mut configured: Timeouts, mut in_force: Timeouts) -> Timeouts {
        let mut wanted = configured;
        for field in Timeouts::FIELDS {
            match (*field(&mut self.configured), *field(&mut configured)) {
                (0, 1..) => *field(&mut self.before) = *field(&mut in_force),
                (1.., 0) => *field(&mut wanted) = *field(&mut self.before),
                (0, 0) | (1.., 1..) => {}
            }
        }
        self.configured = configured;
        wanted
    }
}
