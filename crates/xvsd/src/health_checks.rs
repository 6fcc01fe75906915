//! Health checks of the daemon: their start, their access to the director, and reloads of keepalived.conf.
//!
//! The crate `xvs_health` implements the checks.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crossbeam::channel::Sender;
use thiserror::Error;
use xvs_ctl::config::Keepalived;
use xvs_health::engine;
use xvs_health::engine::Engine;
use xvs_health::prepare::Prepared;
use xvs_health::view::View;
use xvs_health::{DesiredServices, Environment, VipProbe, VipProbeError};
use xvs_host::state_directory::Others;
use xvs_model::config::command::Command;
use xvs_model::config::reconcile::{ReconcileScope, Reconciled};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::health_checks::virtual_server::{RealServer, VirtualServer};
use xvs_model::protocol::question;
use xvs_model::report::event::Kind;
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::handle::Handle;
use crate::keepalived_conf::{Loss, UnusableFile, keeps, read_usable};
use crate::restart::kept_health::KeptHealth;
use crate::threads;
use crate::vip_probes::VipProber;

/// Why health checks do not start.
#[derive(Debug, Error)]
pub enum HealthError {
    /// The system refuses their thread or runtime.
    #[error("health: {0}")]
    System(#[from] io::Error),
    /// The services are refused.
    #[error("keepalived.conf: {0}")]
    Refused(#[from] CommandError),
    /// The file has lost services that an earlier process served.
    #[error(transparent)]
    File(#[from] UnusableFile),
}

/// Starts the checks of a file that has been read; returns when its services are in force. `kept` is the file of the
/// view that outlives the process. While another process runs the checks, these wait for
/// [`begin`](engine::Handle::begin).
///
/// # Errors
/// [`HealthError`]; no check has run.
pub(crate) fn start(
    keepalived: &Keepalived,
    read: Prepared,
    kept: Option<KeptHealth>,
    others: Others,
    (daemon, ended): (&Handle, &Sender<String>),
    loss: Loss,
) -> Result<Engine, HealthError> {
    let file = keepalived.file.clone().unwrap_or_default();
    let former = kept.as_ref().map(KeptHealth::read).unwrap_or_default();
    let read = keeps(read, &file, &former.services(), loss)?;
    let director = Director { daemon: daemon.clone(), vip_prober: VipProber::new(daemon.clone()), kept };
    let engine =
        Engine::start(file.clone(), director, former, |run| threads::spawn("xvs-health", ended, run))?;
    let checks = engine.handle();
    // A process has one health engine, so the cell is still empty.
    let _ = daemon.shared().checks.set(checks.clone());
    if others == Others::Ended {
        checks.begin();
    }
    checks.set_disabled(daemon.shared().facts().disabled);
    tracing::info!("{}: {}", file.display(), checks.replace(read)?);
    Ok(engine)
}

/// Reads a file to replace the running one. If it is the same path, a refusal is in the checks' report.
///
/// # Errors
/// The errors in the file, a line each; or it has no virtual servers while some run, or has lost services of them.
pub(crate) fn read_again(
    keepalived: &Keepalived,
    checks: &engine::Handle,
    loss: Loss,
) -> Result<Prepared, CommandError> {
    let file = keepalived.file.clone().unwrap_or_default();
    let in_force = checks.services();
    let read = match read_usable(&file, keepalived.config_id.as_deref()) {
        // Such a file is more likely half written than intended.
        Ok(read) if read.configuration.virtual_servers.is_empty() && !in_force.is_empty() => {
            Err(UnusableFile::Empty { path: file.clone() })
        }
        read => read.and_then(|read| keeps(read, &file, &in_force, loss)),
    };
    read.map_err(|error| {
        let text = error.to_string();
        if Path::new(&checks.report().file) == file {
            checks.refuse(&text);
        }
        CommandError::failed(format_args!("nothing has changed because the file cannot be used:\n{text}"))
    })
}

/// The director, as the environment of the health checks.
struct Director {
    daemon: Handle,
    vip_prober: VipProber,
    /// `None` if the view is not kept.
    kept: Option<KeptHealth>,
}

impl Environment for Director {
    fn probe_vip(
        &self,
        virtual_endpoint: Endpoint,
        source: Option<IpAddr>,
        server: &RealServer,
    ) -> Result<Box<dyn VipProbe>, VipProbeError> {
        self.vip_prober.begin(virtual_endpoint, source, server)
    }

    fn expect_vip_probes(&self, expected: bool) -> Result<(), CommandError> {
        self.vip_prober.expect(expected)
    }

    fn owns_address_of(&self, virtual_server: &VirtualServer) -> bool {
        let snapshot = self.daemon.shared().published.load();
        virtual_server.services.iter().any(|(key, _)| match key {
            ServiceKey::Address { endpoint, .. } => snapshot.egress.is_own(endpoint.addr),
            ServiceKey::Mark { .. } => true,
        })
    }

    fn reconcile(&self, wanted: DesiredServices, scope: ReconcileScope) -> Result<Reconciled, CommandError> {
        self.daemon.run(move |thread| Ok(thread.control.reconcile(wanted, scope, thread.shared.now())))
    }

    fn timeouts(&self) -> Result<Timeouts, CommandError> {
        self.daemon.ask(question::timeouts())
    }

    fn execute(&self, command: Command) -> Result<(), CommandError> {
        self.daemon.ask(question::change(command))
    }

    fn keep(&self, view: &View) {
        if let Some(kept) = &self.kept {
            kept.write(view);
        }
    }

    fn emit(&self, lines: Vec<String>) {
        lines.iter().for_each(|line| tracing::info!("{line}"));
        let shared = self.daemon.shared();
        let epoch = shared.published.load().epoch;
        shared.events.record_all(Kind::Health, epoch, None, lines.into_iter().map(|line| (line, None)));
    }
}
