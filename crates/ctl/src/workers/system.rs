//! The machine as the control thread acts on it: steering, workers, neighbours, memory.
//!
//! Used by the control thread alone, for each change that it publishes; made at start-up, and dropped first when the
//! daemon ends, so that the interfaces are the kernel's again. Waits for workers (as long as it is told to) and for
//! netlink. Not here: the order of a publication (`control.rs`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use xvs_dataplane::conn::Table;
use xvs_dataplane::steering::{Steering, SteeringError, SteeringRules};

use crate::control::datapath::Datapath;
use crate::workers::Workers;
use xvs_host::memory::available_pages;
use xvs_host::network::neighbours::Neighbours;
use xvs_host::reserved_ports::ReservedPorts;

/// How long after a refusal neighbours are tried again.
pub(crate) const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// The control thread's hold on the machine. Fields are dropped in this order: the interfaces are the kernel's again
/// before anything else goes.
pub(crate) struct SystemDatapath {
    workers: Workers,
    steering: Steering,
    neighbours: Neighbours,
    /// Those that are to be kept resolved.
    wanted: BTreeSet<(u32, IpAddr)>,
    /// When they are tried again, if the kernel has refused some.
    retry: Option<Instant>,
    table: Arc<Table>,
    reserved: ReservedPorts,
    /// Why local ports are not reserved, if so.
    not_reserved: Option<String>,
}

impl SystemDatapath {
    pub(crate) fn new(
        workers: Workers,
        steering: Steering,
        neighbours: Neighbours,
        table: Arc<Table>,
    ) -> Self {
        Self {
            workers,
            steering,
            neighbours,
            wanted: BTreeSet::new(),
            retry: None,
            table,
            reserved: ReservedPorts::default(),
            not_reserved: None,
        }
    }

    /// The workers and their interfaces, and what is steered to them.
    pub(crate) fn workers(&mut self) -> (&mut Workers, &Steering) {
        (&mut self.workers, &self.steering)
    }

    /// The kernel's neighbours.
    pub(crate) fn neighbours(&mut self) -> &mut Neighbours {
        &mut self.neighbours
    }

    /// Why the kernel may take local ports for its own connections, if so.
    pub(crate) fn not_reserved(&self) -> Option<&String> {
        self.not_reserved.as_ref()
    }

    /// Whose seat it is at the table.
    fn who(&self, seat: usize) -> String {
        let workers = self.table.config().workers;
        if seat < workers { format!("worker {seat}") } else { "a listing".to_owned() }
    }
}

impl Datapath for SystemDatapath {
    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.add(rules)
    }

    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.subtract(rules)
    }

    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.set(rules)
    }

    fn await_workers(&mut self, patience: Duration) -> Result<(), String> {
        let epoch = self.table.close_epoch();
        let patience = Instant::now() + patience;
        while let Some(seat) = self.table.laggard(epoch) {
            if Instant::now() >= patience {
                return Err(self.who(seat));
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) {
        self.wanted.clone_from(neighbours);
        self.manage_neighbours();
    }

    fn reserve_ports(&mut self, ports: &[(u16, u16)]) {
        self.not_reserved = self.reserved.set(ports.to_vec()).err();
    }

    fn available_pages(&mut self) -> Option<u32> {
        available_pages().inspect_err(|error| tracing::warn!("the memory left is not known: {error}")).ok()
    }

    fn free_entries(&self) -> (usize, usize) {
        let size = self.table.config().capacity;
        (size.saturating_sub(self.table.live()), size)
    }
}

impl SystemDatapath {
    /// Has the wanted neighbours kept resolved. A refusal is told when it begins and when it ends.
    fn manage_neighbours(&mut self) {
        let refused = match self.neighbours.manage(&self.wanted) {
            Ok(None) => None,
            Ok(Some(refused)) => Some(refused.to_string()),
            Err(error) => Some(format!("neighbours cannot be kept resolved: {error}")),
        };
        match (&refused, self.retry) {
            (Some(refused), None) => {
                tracing::warn!("{refused}; tried again every {} s", RETRY_REFUSED.as_secs());
            }
            (None, Some(_)) => tracing::info!("all neighbours are kept resolved again"),
            _ => {}
        }
        self.retry = refused.map(|_| Instant::now() + RETRY_REFUSED);
    }

    /// Tries neighbours again that were refused, when that is due.
    pub(crate) fn retry_neighbours(&mut self) {
        if self.retry.is_some_and(|due| due <= Instant::now()) {
            self.manage_neighbours();
        }
    }
}
