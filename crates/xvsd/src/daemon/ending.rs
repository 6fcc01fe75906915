//! The end of the daemon: its reason, and its effect on the interfaces.

/// A request to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Why, as it is logged.
    pub why: String,
    /// How.
    pub ending: Ending,
}

/// What happens to the interfaces when the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Pinned XDP programs stay, and hold the frames of services.
    Hold,
    /// The kernel has all packets at once.
    Release,
}
