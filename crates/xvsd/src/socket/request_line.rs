//! Requests that change something, as they are typed: for the log and events.

use xvs_ctl::events::changes;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::Request;
use xvs_model::protocol::request::{FleetRequest, Verdict};

/// The command line of a request that changes something; the first one of several.
pub(super) fn request_line(request: &Request) -> String {
    let line = match request {
        Request::Control(request) => {
            let first = changes(request, &Err(CommandError::PermissionDenied)).next();
            return first.map_or_else(|| "xvs feedback".to_owned(), |(line, _)| line);
        }
        Request::Fleet(FleetRequest::Apply { confirm_within_seconds: Some(seconds), .. }) => {
            return format!("xvs fleet apply --confirm-within {seconds}s");
        }
        Request::Fleet(FleetRequest::Apply { .. }) => "xvs fleet apply",
        Request::Fleet(FleetRequest::Confirm(Verdict::Keep)) => "xvs fleet confirm",
        Request::Fleet(FleetRequest::Confirm(Verdict::TakeBack)) => "xvs fleet confirm --take-back",
        Request::Reload => "xvs reload",
        Request::ReloadAcceptingLoss => "xvs reload --accept-loss",
        Request::Stop { release: false } => "xvs stop",
        Request::Stop { release: true } => "xvs stop --release",
        Request::EndConnections(_) | Request::ResetConnections(_) => "xvs drain",
        _ => "xvs capture",
    };
    line.to_owned()
}
