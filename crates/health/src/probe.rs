//! One probe of a check, by its kind.

use tokio::time::Instant;
use xvs_model::check::Probe;

use crate::check_ref::CheckRef;
use crate::command::Program;
use crate::probe_result::ProbeResult;
use crate::{dns, http, icmp, script, smtp, tcp, udp};

/// Runs one probe of a check, at most until `deadline`. `url` is the index of the URL that an HTTP check requests.
pub(super) async fn run(check: CheckRef, url: usize, deadline: Instant) -> ProbeResult {
    match &check.config().probe {
        Probe::Tcp(target) => tcp::probe(target, deadline).await,
        Probe::Udp(target, udp) => udp::probe(target, udp, deadline).await,
        Probe::Dns(target, dns) => dns::probe(target, dns, deadline).await,
        Probe::Smtp(target, name) => smtp::probe(target, name, deadline).await,
        Probe::Ping(target) => icmp::probe(target, deadline).await,
        Probe::Script(script, meaning) => {
            let program = Program::new(script, &check.globals, check.run_lock.clone());
            script::probe(&program, *meaning, check.real_server().options.weight.0, deadline).await
        }
        Probe::Http(target, http) => match &check.prepared {
            Some(prepared) => http::probe(target, http, prepared, url, deadline).await,
            None => unreachable!("prepared HTTP checks have their settings"),
        },
        Probe::File(_) => unreachable!("a file check has a task of its own, without probes"),
    }
}
