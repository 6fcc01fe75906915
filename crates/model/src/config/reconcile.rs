//! Services owned by health checks: their wanted options and destinations, and the result of reconciling them.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::ClientLimit;

use crate::config::command::Command;
use crate::config::destination::{Destination, DestinationOptions};
use crate::config::refusal::CommandError;
use crate::config::service::{Service, ServiceOptions};

/// A service as health checks want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedService {
    /// The options.
    pub options: ServiceOptions,
    /// The destinations, in the order in which they are added; no endpoint twice.
    pub destinations: Vec<(Endpoint, DestinationOptions)>,
    /// The limit of its clients; `None`: health checks leave the limit alone, or end the one that they wanted before.
    pub limit: Option<ClientLimit>,
}

/// Which owned services and destinations are reconciled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconcileScope {
    /// Services and destinations whose wanted options have changed. Manual changes to the others stay.
    Changes,
    /// All of every owned service.
    Everything,
}

/// The result of a reconciliation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// The number of commands that were carried out.
    pub changed: usize,
    /// The refused commands, each with its error. They are tried again each second while they are wanted; destinations
    /// of a refused service are tried together with it.
    pub refused: Vec<(Command, CommandError)>,
}

/// Whether manual changes to owned services are undone. In xvs.toml `true` is `Always`, `false` is `Never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "bool", into = "bool")]
pub enum Repair {
    /// They stay until health checks want something else there, or until everything is reconciled.
    #[default]
    Never,
    /// They are undone within a second.
    Always,
}

impl From<bool> for Repair {
    fn from(always: bool) -> Self {
        if always { Self::Always } else { Self::Never }
    }
}

impl From<Repair> for bool {
    fn from(repair: Repair) -> Self {
        repair == Repair::Always
    }
}

impl From<OwnedService> for Service {
    fn from(wanted: OwnedService) -> Self {
        // IPVS's order: the one added last comes first.
        let destinations = wanted
            .destinations
            .into_iter()
            .rev()
            .map(|(endpoint, options)| Destination { endpoint, options })
            .collect();
        Self { options: wanted.options, destinations }
    }
}
