//! The `drop_packet` defence against SYN floods: drops a share of the packets that could begin a connection.
//!
//! Not here: `drop_entry` (`sweep.rs` of `ctl`), `secure_tcp` (`conn/tcp.rs`), eviction from a full table
//! (`eviction.rs`), and the settings that switch them on (`control/settings.rs` of `ctl`).
use crate::snapshot::Settings;
use crate::verdict::{DropReason, Verdict};

/// Counts the packets of one worker that could begin a connection.
#[derive(Debug, Default)]
pub(crate) struct Defence {
    passed: u32,
}

impl Defence {
    /// Drops the first packet, and then every n-th, where n is the setting's rate; 0 drops none.
    ///
    /// # Errors
    /// The verdict on a packet that is dropped.
    pub(crate) fn admit(&mut self, settings: &Settings) -> Result<(), Verdict> {
        let rate = settings.drop_packet_rate;
        if rate == 0 {
            self.passed = 0;
            return Ok(());
        }
        let drops = self.passed == 0;
        self.passed = (self.passed + 1) % rate;
        if drops { Err(Verdict::Drop(DropReason::Defence)) } else { Ok(()) }
    }
}
