//! Services owned by health checks: what they should be, and what was made of that.

use serde::Deserialize;
use xvs_proto::Endpoint;

use crate::command::{Command, CommandError};
use crate::destination::{Destination, DestinationOptions};
use crate::service::{Service, ServiceOptions};

/// A service as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedService {
    /// How it treats its connections.
    pub options: ServiceOptions,
    /// Its destinations, in the order in which they are added; no endpoint twice.
    pub destinations: Vec<(Endpoint, DestinationOptions)>,
}

/// How much is made as it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconcileScope {
    /// What is wanted otherwise than before. What somebody else has changed beside that stays as it is.
    Changes,
    /// Every owned service, named now or before.
    Everything,
}

/// What was made of what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// Commands that were carried out.
    pub changed: usize,
    /// Those that were not, each with the reason; they are tried again each second for as long as they are wanted. What
    /// belongs to a service that was refused is tried with it.
    pub refused: Vec<(Command, CommandError)>,
}

/// What becomes of owned services that somebody else has changed. Written as `true`, always, or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "bool")]
pub enum Repair {
    /// They stay as they are, until something else is wanted of them or everything is made anew.
    #[default]
    Never,
    /// They are put back within a second.
    Always,
}

impl From<bool> for Repair {
    fn from(always: bool) -> Self {
        if always { Self::Always } else { Self::Never }
    }
}

impl From<OwnedService> for Service {
    fn from(wanted: OwnedService) -> Self {
        // The one added last comes first.
        let added = wanted.destinations.into_iter().rev();
        let destinations = added.map(|(endpoint, options)| Destination { endpoint, options }).collect();
        Self { options: wanted.options, destinations }
    }
}
