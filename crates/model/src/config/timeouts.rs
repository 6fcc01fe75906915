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

    /// Each timeout.
    pub const FIELDS: [fn(&mut Self) -> &mut u32; 3] =
        [|all| &mut all.tcp_seconds, |all| &mut all.tcp_fin_seconds, |all| &mut all.udp_seconds];

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
    pub fn update(&mut self, mut wanted: Self) {
        for field in Self::FIELDS {
            let new = *field(&mut wanted);
            if new != 0 {
                *field(self) = new;
            }
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { tcp_seconds: 900, tcp_fin_seconds: 120, udp_seconds: 300 }
    }
}
