//! The requests of operators: `xvs fleet apply` and `xvs fleet confirm`, each as one transaction of etcd.

use std::time::Duration;

use thiserror::Error;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::request::{FleetRequest, Verdict};

use crate::fleet::etcd::{Committed, Etcd, EtcdError};
use crate::fleet::follow::Seen;

/// Carries out a request. Returns the revision that it has written.
///
/// # Errors
/// Nothing is written; or, if etcd does not answer, perhaps all.
pub(super) async fn carry_out(etcd: &mut Etcd, request: &FleetRequest) -> Result<u64, CommandError> {
    let done = match request {
        FleetRequest::Apply { text, former, confirm_within_seconds } => {
            apply(etcd, text, *former, *confirm_within_seconds).await
        }
        FleetRequest::Confirm(verdict) => confirm(etcd, *verdict).await,
    };
    done.map_err(|why| match etcd.answers {
        true => CommandError::failed(why),
        false => CommandError::failed(format_args!("etcd does not answer: {why}; {STEP}")),
    })
}

/// Why a request of an operator is not carried out.
#[derive(Debug, Error)]
enum OrderError {
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error(
        "rules of revision {0} wait to be confirmed; `xvs fleet confirm` keeps them, `xvs fleet confirm --take-back` ends \
         them"
    )]
    TrialWaits(u64),
    /// Others have changed the rules since the client has read them.
    #[error("the rules in etcd have just become those of revision {0}; look at `xvs fleet`, and try again")]
    Changed(u64),
    #[error("the rules in etcd have just been deleted; look at `xvs fleet`, and try again")]
    Deleted,
    #[error("no rules of the fleet wait to be confirmed; the time may be over, see `xvs fleet`")]
    NoTrial,
}

/// The next step if etcd does not respond. It may have carried out a request whose response is late.
const STEP: &str = "start it there, or correct `etcd` in [fleet] of xvs.toml; then `xvs fleet` shows whether it has the change";

async fn apply(
    etcd: &mut Etcd,
    text: &str,
    former: Option<u64>,
    confirm_within_seconds: Option<u32>,
) -> Result<u64, OrderError> {
    let compare = [etcd.has_revision("rules", former), etcd.has_revision("trial", None)];
    let (put, lease) = match confirm_within_seconds {
        None => (etcd.put("rules", text.as_bytes(), 0), None),
        Some(seconds) => {
            let lease = etcd.grant(Duration::from_secs(seconds.into())).await?;
            (etcd.put("trial", text.as_bytes(), lease), Some(lease))
        }
    };
    let committed = etcd.commit(&compare, &[put]).await?;
    if committed.done {
        return Ok(committed.revision);
    }
    if let Some(lease) = lease {
        etcd.revoke(lease).await?;
    }
    Err(match etcd.keys().await?.seen {
        Seen { trial: Some(trial), .. } => OrderError::TrialWaits(trial),
        Seen { rules: Some(rules), .. } => OrderError::Changed(rules),
        _ => OrderError::Deleted,
    })
}

async fn confirm(etcd: &mut Etcd, verdict: Verdict) -> Result<u64, OrderError> {
    let (revision, text) = etcd.text("trial").await?.ok_or(OrderError::NoTrial)?;
    let mut operations = vec![etcd.delete("trial")];
    if verdict == Verdict::Keep {
        operations.push(etcd.put("rules", &text, 0));
    }
    let compare = etcd.has_revision("trial", Some(revision));
    let Committed { done, revision } = etcd.commit(&[compare], &operations).await?;
    if done { Ok(revision) } else { Err(OrderError::NoTrial) }
}
