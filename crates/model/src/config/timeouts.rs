//! The timeouts of connections that `ipvsadm --set` sets.

use serde::{Deserialize, Serialize};

use crate::config::refusal::CommandError;

/// The timeouts of connections that `ipvsadm --set` sets; those of other states are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Timeouts {
    /// The timeout of established TCP connections.
    pub tcp_seconds: u32,
    /// The timeout of TCP connections after a FIN.
    pub tcp_fin_seconds: u32,
    /// The timeout of UDP connections.
    pub udp_seconds: u32,
}

impl Timeouts {
    /// No timeout is set: [`update`](Self::update) keeps every value.
    pub const UNSET: Self = Self { tcp_seconds: 0, tcp_fin_seconds: 0, udp_seconds: 0 };

    /// The longest timeout, 31 days, as with `ipvsadm`.
    pub const MAX_SECONDS: u32 = 31 * 24 * 60 * 60;

    /// Checks whether these timeouts can be set.
    ///
    /// # Errors
    /// A timeout is longer than [`Self::MAX_SECONDS`].
    pub(crate) fn check(self) -> Result<(), CommandError> {
        let longest = self.tcp_seconds.max(self.tcp_fin_seconds).max(self.udp_seconds);
        if longest > Self::MAX_SECONDS {
            let why = format!("a timeout is at most {} seconds", Self::MAX_SECONDS);
            return Err(CommandError::invalid(why));
        }
        Ok(())
    }

    /// Sets the timeouts of `wanted`; 0 keeps a value.
    pub fn update(&mut self, wanted: Self) {
        for (kept, new) in [
            (&mut self.tcp_seconds, wanted.tcp_seconds),
            (&mut self.tcp_fin_seconds, wanted.tcp_fin_seconds),
            (&mut self.udp_seconds, wanted.udp_seconds),
        ] {
            if new != 0 {
                *kept = new;
            }
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { tcp_seconds: 900, tcp_fin_seconds: 120, udp_seconds: 300 }
    }
}
