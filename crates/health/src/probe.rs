//! One attempt of a check, by its kind.

use tokio::time::Instant;
use xvs_model::check::Probe;

use crate::answer::Answer;
use crate::command::Program;
use crate::place::Place;
use crate::{dns, http, icmp, script, smtp, tcp, udp};

/// The answer to the check at a place, by then; `url` is the number of the object that is requested.
pub(super) async fn ask(place: Place, url: usize, deadline: Instant) -> Answer {
    match &place.check().probe {
        Probe::Tcp(target) => tcp::ask(target, deadline).await,
        Probe::Udp(target, udp) => udp::ask(target, udp, deadline).await,
        Probe::Dns(target, dns) => dns::ask(target, dns, deadline).await,
        Probe::Smtp(target, name) => smtp::ask(target, name, deadline).await,
        Probe::Ping(target) => icmp::ask(target, deadline).await,
        Probe::Script(script, meaning) => {
            let program = Program::new(script, &place.globals, place.turn.clone());
            script::ask(&program, *meaning, place.server().options.weight.0, deadline).await
        }
        Probe::Http(target, http) => match &place.prepared {
            Some(prepared) => http::ask(target, http, prepared, url, deadline).await,
            None => unreachable!("an HTTP check is prepared when its configuration is"),
        },
        Probe::File(_) => unreachable!("a file is not asked, it tells by itself"),
    }
}
