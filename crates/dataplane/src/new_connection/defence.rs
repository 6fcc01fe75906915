//! The `drop_packet` defence against SYN floods: drops a share of the packets that could begin a connection.

use crate::snapshot::Settings;
use crate::verdict::{DropReason, Verdict};

/// Counts down the packets of one worker that could begin a connection.
#[derive(Debug, Default)]
pub(crate) struct Defence {
    remaining: u32,
}

impl Defence {
    /// Drops the first packet, and then every n-th, where n is the setting's rate at the last drop; 0 drops none and
    /// leaves the count unchanged.
    ///
    /// Source: the recordings `drop-packet-*`.
    ///
    /// # Errors
    ///
    /// The verdict on a packet that is dropped.
    pub(crate) fn admit(&mut self, settings: &Settings) -> Result<(), Verdict> {
        let rate = settings.drop_packet_rate;
        if rate == 0 {
            return Ok(());
        }
        if self.remaining > 1 {
            self.remaining -= 1;
            return Ok(());
        }
        self.remaining = rate;
        Err(Verdict::Drop(DropReason::Defence))
    }
}
