//! The state of UDP connections: a single one, which every packet refreshes. It never counts as active, as in IPVS.

/// The name that listings print.
pub const STATE_NAME: &str = "UDP";
