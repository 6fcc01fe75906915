//! UDP has one state, which every packet refreshes. It never counts as active, as under IPVS.

/// The name that listings print.
pub const STATE_NAME: &str = "UDP";
