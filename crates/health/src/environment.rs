//! The environment of the checks: the director, the network and this machine, or their stand-ins in a test.

use std::future::Future;
use std::net::IpAddr;

use tokio::time::Instant;
use xvs_model::config::command::Command;
use xvs_model::config::reconcile::{OwnedService, ReconcileScope, Reconciled};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::health_checks::virtual_server::{RealServer, VirtualServer};
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::check_ref::CheckRef;
use crate::probes::probe_result::ProbeResult;
use crate::probes::through_vip::{VipProbe, VipProbeError};
use crate::view::View;

/// The services that the checks want, by key; `None` removes the service.
pub type DesiredServices = Vec<(ServiceKey, Option<OwnedService>)>;

/// The outside dependencies of this crate: probes over the network, and the director's control thread.
pub trait Environment: Send + Sync + 'static {
    /// Runs one probe of a check, at most until `deadline`.
    ///
    /// `url` is the index of the URL that an HTTP check requests; 0 for all others.
    fn probe(
        &self,
        check: CheckRef,
        url: usize,
        deadline: Instant,
    ) -> impl Future<Output = ProbeResult> + Send {
        crate::probes::run(
            |virtual_endpoint, source, server: &RealServer| self.probe_vip(virtual_endpoint, source, server),
            check,
            url,
            deadline,
        )
    }

    /// Begins a TCP connection to this virtual endpoint, from this address of the director if one is configured. It is
    /// forwarded to this real server like a client's packets, and reset when the server has accepted it.
    ///
    /// # Errors
    ///
    /// The reason why this machine cannot do that now.
    fn probe_vip(
        &self,
        virtual_endpoint: Endpoint,
        source: Option<IpAddr>,
        server: &RealServer,
    ) -> Result<Box<dyn VipProbe>, VipProbeError>;

    /// Prepares for probes through virtual addresses, or ends that. Blocks until it is in force.
    ///
    /// # Errors
    ///
    /// This machine cannot do that.
    fn expect_vip_probes(&self, expected: bool) -> Result<(), CommandError>;

    /// Whether this machine currently has an address of one of the virtual server's services (`ha_suspend`).
    fn owns_address_of(&self, virtual_server: &VirtualServer) -> bool;

    /// Changes the services of the director to `wanted`. Blocks until the change is in force.
    ///
    /// # Errors
    /// The request failed; nothing has changed.
    fn reconcile(&self, wanted: DesiredServices, scope: ReconcileScope) -> Result<Reconciled, CommandError>;

    /// The connection timeouts in force. Blocks until the control thread has answered.
    ///
    /// # Errors
    /// The control thread did not answer.
    fn timeouts(&self) -> Result<Timeouts, CommandError>;

    /// Executes a command. Blocks until it is in force.
    ///
    /// # Errors
    /// The command was refused.
    fn execute(&self, command: Command) -> Result<(), CommandError>;

    /// Keeps the view for a later process. May wait for a file. Keeps nothing if there is no room for it.
    fn keep(&self, view: &View);

    /// Writes these lines to the event stream and to the log, as one group.
    fn emit(&self, lines: Vec<String>);
}
