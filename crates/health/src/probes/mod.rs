//! The probes: one attempt of a check, a file for each kind.

mod agent;
mod dns;
pub(crate) mod file;
pub(crate) mod http;
mod icmp;
pub(crate) mod probe_result;
mod script;
mod smtp;
pub(crate) mod socket;
mod tcp;
pub(crate) mod through_vip;
mod tls;
mod udp;

use std::net::IpAddr;

use tokio::time::Instant;
use xvs_model::health_checks::check::Probe;
use xvs_model::health_checks::virtual_server::RealServer;
use xvs_proto::Endpoint;

use crate::check_ref::CheckRef;
use crate::command::Program;
use crate::probes::probe_result::ProbeResult;
use crate::probes::through_vip::{VipProbe, VipProbeError};

/// Runs one probe of a check, at most until `deadline`. `url` is the index of the URL that an HTTP check requests.
/// `begin_through_vip` begins a probe through a virtual endpoint, from a source address if one is configured.
pub(crate) async fn run(
    begin_through_vip: impl Fn(Endpoint, Option<IpAddr>, &RealServer) -> Result<Box<dyn VipProbe>, VipProbeError>,
    check: CheckRef,
    url: usize,
    deadline: Instant,
) -> ProbeResult {
    // Boxed separately: an HTTP probe takes six times the memory of a TCP one.
    match &check.config().probe {
        Probe::Tcp(target) => Box::pin(tcp::probe(target, deadline)).await,
        Probe::ThroughVip(through) => {
            let server = check.real_server();
            let begin = |endpoint| begin_through_vip(endpoint, through.source, server);
            Box::pin(through_vip::probe(begin, &through.endpoints, server, deadline)).await
        }
        Probe::Agent(target, text) => Box::pin(agent::probe(target, text, deadline)).await,
        Probe::Udp(target, udp) => Box::pin(udp::probe(target, udp, deadline)).await,
        Probe::Dns(target, dns) => Box::pin(dns::probe(target, dns, deadline)).await,
        Probe::Smtp(target, name) => Box::pin(smtp::probe(target, name, deadline)).await,
        Probe::Ping(target) => Box::pin(icmp::probe(target, deadline)).await,
        Probe::Script(script, meaning) => {
            let program = Program::new(script, &check.globals, check.run_lock.clone());
            Box::pin(script::probe(&program, *meaning, check.real_server().options.weight.0, deadline)).await
        }
        Probe::Http(target, http) => match &check.prepared {
            Some(prepared) => Box::pin(http::probe(target, http, prepared, url, deadline)).await,
            None => unreachable!("prepared HTTP checks have their settings"),
        },
        Probe::File(_) => unreachable!("a file check has a task of its own, without probes"),
    }
}
