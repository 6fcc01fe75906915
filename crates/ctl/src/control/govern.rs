//! Services that health governs: what it wants of them.

use xvs_proto::Endpoint;

use crate::state::{DestinationOptions, ServiceOptions};

/// A service as health wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GovernedService {
    /// How it treats its connections.
    pub options: ServiceOptions,
    /// Its destinations, each once, in the order in which they are added.
    pub destinations: Vec<(Endpoint, DestinationOptions)>,
}
