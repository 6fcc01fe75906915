//! One attempt of a check, by its kind.

use tokio::time::Instant;
use xvs_model::check::Probe;

use crate::check_ref::CheckRef;
use crate::command::Program;
use crate::probe_result::ProbeResult;
use crate::{dns, http, icmp, script, smtp, tcp, udp};

/// The answer to the check at a check, by then; `url` is the number of the object that is requested.
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
            None => unreachable!("an HTTP check is prepared when its configuration is"),
        },
        Probe::File(_) => unreachable!("a file is not asked, it tells by itself"),
    }
}
