//! The redirection of packets that this machine itself sends, from real servers and clients on it.
//!
//! The program is `bpf/own.bpf.c` in the data plane.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use xvs_dataplane::steering::own::Redirection;
use xvs_dataplane::steering::reinject::Reinjector;
use xvs_dataplane::steering::{OwnSender, Steering};
use xvs_helper::task::Task;
use xvs_host::loopback::AcceptOwnAddresses;
use xvs_host::network::clsact::ProvideClsact;
use xvs_model::report::warning::{Warning, WarningKind};

use super::{RETRY_REFUSED, Workers};

impl Workers {
    /// Redirects again what this machine itself sends, after a successor has redirected it and failed.
    pub(crate) fn redirect_own_anew(&mut self, steering: &Steering) {
        self.own.fill_with(|| None);
        self.own_clients = None;
        self.redirect_own(steering);
    }

    /// Redirects what this machine itself sends, as long as it has to be, with these maps. Not before the workers run.
    pub(crate) fn redirect_own(&mut self, steering: &Steering) {
        // No worker reads the TAPs yet, and another process may still redirect.
        if self.threads.is_empty() {
            return;
        }
        let mut results: Vec<_> = self
            .own
            .iter_mut()
            .zip(&self.reinjectors)
            .zip(&self.attached)
            .map(|((own, tap), attached)| {
                redirect(own, steering, OwnSender::Server, attached.interface(), || Ok(tap.clone()))
            })
            .collect();
        let loopback = &self.loopback;
        results.push(redirect(&mut self.own_clients, steering, OwnSender::Client, "lo", || {
            match loopback.get() {
                Some(open) => Ok(open.clone()),
                None => {
                    AcceptOwnAddresses.run(&[])?;
                    let open = Arc::new(Reinjector::open_loopback()?);
                    Ok(loopback.get_or_init(|| open).clone())
                }
            }
        }));
        let has_begun = results.iter().any(|result| matches!(result, Ok(true)));
        self.not_redirected = results
            .into_iter()
            .filter_map(Result::err)
            .map(|error| Warning::new(WarningKind::OwnPackets, &error.interface, error.to_string()))
            .collect();
        // The worker that reads these TAPs may sleep, and then waits for others alone.
        if let Some(reader) = self.wakers.first().filter(|_| has_begun) {
            reader.wake();
        }
    }
}

/// The reason why packets from this machine cannot be redirected.
#[derive(Debug, Error)]
#[error(
    "{unserved} are not served, because their packets cannot be redirected on {interface}: {error}; correct that, it is \
     tried again every {} s",
    RETRY_REFUSED.as_secs()
)]
struct RedirectError {
    unserved: &'static str,
    interface: String,
    error: io::Error,
}

/// Begins or ends the redirection of packets from this sender, as needed. Returns whether it has begun.
fn redirect(
    own: &mut Option<Redirection>,
    steering: &Steering,
    sender: OwnSender,
    interface: &str,
    reinjector: impl Fn() -> io::Result<Arc<Reinjector>>,
) -> Result<bool, RedirectError> {
    if !steering.redirects(sender) {
        *own = None;
        return Ok(false);
    }
    // Deleting the qdisc deletes the program, too.
    if own.as_ref().is_some_and(Redirection::is_in_force) {
        return Ok(false);
    }
    let begun = reinjector()
        .and_then(|tap| {
            ProvideClsact { interface: tap.interface() }.run(&[])?;
            Redirection::begin(steering, sender, tap)
        })
        .map_err(|error| {
            let unserved = match sender {
                OwnSender::Server => "real servers on this machine by NAT",
                OwnSender::Client => "clients on this machine",
            };
            RedirectError { unserved, interface: interface.to_owned(), error }
        })?;
    *own = Some(begun);
    Ok(true)
}
