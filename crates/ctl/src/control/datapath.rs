//! The datapath as the control plane uses it: the XDP program, the workers, the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use xvs_dataplane::steering::{SteeringError, SteeringRules};

/// What the control plane acts on, apart from the published snapshot.
pub trait Datapath {
    /// Adds these rules to the steering.
    ///
    /// # Errors
    /// A map is full, or the kernel refuses; then the steering has not changed.
    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Removes these rules from the steering.
    ///
    /// # Errors
    /// As for [`Self::add_steering`].
    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Replaces the steering by these rules.
    ///
    /// # Errors
    /// As for [`Self::add_steering`].
    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError>;

    /// Waits until every worker uses what was published before the call.
    ///
    /// # Errors
    /// A thread that does not after `patience`, such as `worker 3`.
    fn await_workers(&mut self, patience: Duration) -> Result<(), String>;

    /// Makes the kernel keep these neighbours resolved, and no others. Each has the kernel's index of its link.
    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>);

    /// Replaces the port ranges, first and last, that the kernel does not use for its own connections.
    fn reserve_ports(&mut self, ports: &[(u16, u16)]);

    /// Pages of memory that the machine has available; `None`: unknown, which does not count as short.
    fn available_pages(&mut self) -> Option<u32>;
}
