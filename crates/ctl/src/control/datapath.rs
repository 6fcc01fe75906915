//! What the control plane acts on beside the snapshot: the XDP program, the workers, the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use xvs_dataplane::steering::{SteeringError, SteeringRules};

/// What the control thread acts on beside the snapshot.
pub trait Datapath {
    /// Steers what `rules` name, in addition to what is steered already.
    ///
    /// # Errors
    /// The map that is full, or the kernel's refusal; then what is steered has not changed.
    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Steers no longer what `rules` name.
    ///
    /// # Errors
    /// As for [`Self::add_steering`].
    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Steers what `rules` name and nothing else.
    ///
    /// # Errors
    /// As for [`Self::add_steering`].
    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Returns when every worker acts on what was published before.
    ///
    /// # Errors
    /// One that does not after this long, such as `worker 3`.
    fn await_workers(&mut self, patience: Duration) -> Result<(), String>;

    /// Has these neighbours, by the kernel's index of their link, kept resolved, and no others.
    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>);

    /// Keeps the kernel's own connections off these ranges of ports, first and last, and off no others.
    fn reserve_ports(&mut self, ports: &[(u16, u16)]);

    /// Pages of memory that the machine has available; `None` if that cannot be told, which is not taken for
    /// shortness.
    fn available_pages(&mut self) -> Option<u32>;
}
