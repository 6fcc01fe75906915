//! UDP: one state, refreshed by every packet that is seen. Never active: IPVS counts UDP as inactive.

/// The name that listings print.
pub const STATE_NAME: &str = "UDP";
