//! Sorry servers of a keepalived.conf.

use xvs_model::destination::DestinationOptions;
use xvs_model::virtual_server::{RealServer, SorryServer};
use xvs_proto::{Endpoint, Family};

use crate::blocks::Block;
use crate::head::{Head, NAT, endpoint, family, in_services};
use crate::values::{Faults, Method};

/// What is said of a sorry server.
pub(crate) struct SorryDraft {
    block: Block,
    endpoint: Endpoint,
    /// Its own, or what was said before it.
    pub(crate) method: Option<Method>,
    pub(crate) inhibit: bool,
}

impl SorryDraft {
    /// Reads a `sorry_server`, before which this method was said.
    pub(crate) fn read(block: &Block, method: Option<Method>, faults: &mut Faults) -> Option<Self> {
        let endpoint = endpoint(block, faults)?;
        Some(Self { block: block.clone(), endpoint, method, inhibit: false })
    }

    /// The family that its virtual server has by it, as far as is said.
    pub(crate) fn family(&self) -> Option<Family> {
        family(self.endpoint, self.method)
    }

    /// The server, now that all is said of its virtual server.
    pub(crate) fn finish(
        self,
        default_method: Option<Method>,
        head: &Head,
        servers: &[RealServer],
        faults: &mut Faults,
    ) -> SorryServer {
        let (method, tunnel) = self.method.or(default_method).unwrap_or(NAT);
        let endpoint = in_services(self.endpoint, method, head, &self.block, faults);
        // One that is a real server too stays as that does.
        let same = servers.iter().find(|server| server.endpoint == endpoint);
        if same.is_some_and(|server| server.inhibit_on_failure != self.inhibit) {
            let why = "it is a real server too, and is inhibited if that one is";
            faults.warn(&self.block.place, format!("`{}`: {why}", self.block.text));
        }
        SorryServer {
            place: self.block.place,
            endpoint,
            options: DestinationOptions { method, tunnel, ..DestinationOptions::default() },
            inhibit: same.map_or(self.inhibit, |server| server.inhibit_on_failure),
        }
    }
}
