//! `sorry_server` statements.

use xvs_model::config::destination::DestinationOptions;
use xvs_model::health_checks::virtual_server::{RealServer, SorryServer};
use xvs_proto::{Endpoint, Family};

use crate::blocks::Block;
use crate::head::{Head, NAT, endpoint, family, in_services};
use crate::values::{Faults, Method};

/// The statements of a sorry server.
pub(crate) struct SorryDraft {
    block: Block,
    endpoint: Endpoint,
    /// The server's own method, or the method that statements before it set.
    pub(crate) method: Option<Method>,
    pub(crate) inhibit: bool,
}

impl SorryDraft {
    /// Reads a `sorry_server`; statements before it have set `method`.
    pub(crate) fn read(block: &Block, method: Option<Method>, faults: &mut Faults) -> Option<Self> {
        let endpoint = endpoint(block, faults)?;
        Some(Self { block: block.clone(), endpoint, method, inhibit: false })
    }

    /// The family that it implies for its virtual server; `None` with method TUN.
    pub(crate) fn family(&self) -> Option<Family> {
        family(self.endpoint, self.method)
    }

    /// Creates the sorry server, after the whole virtual server was read.
    pub(crate) fn finish(
        self,
        default_method: Option<Method>,
        head: &Head,
        servers: &[RealServer],
        faults: &mut Faults,
    ) -> SorryServer {
        let (method, tunnel) = self.method.or(default_method).unwrap_or(NAT);
        let endpoint = in_services(self.endpoint, method, head, &self.block, faults);
        // A sorry server that is also a real server has the real server's `inhibit_on_failure`.
        let same = servers.iter().find(|server| server.endpoint == endpoint);
        if same.is_some_and(|server| server.inhibit_on_failure != self.inhibit) {
            faults.warn_of(&self.block, "it is a real server too, and is inhibited if that one is");
        }
        SorryServer {
            place: self.block.place,
            endpoint,
            options: DestinationOptions { method, tunnel, ..DestinationOptions::default() },
            inhibit: same.map_or(self.inhibit, |server| server.inhibit_on_failure),
        }
    }
}
