//! The requests of operators: `xvs fleet apply` and `xvs fleet confirm`, each as one transaction of etcd.

use std::time::Duration;

use xvs_model::config::command::CommandError;
use xvs_model::protocol::request::{FleetRequest, Verdict};

use crate::fleet::etcd::Etcd;

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
    done.map_err(|why| CommandError::Failed {
        why: match etcd.answers {
            true => format!("xvs: {why}"),
            false => format!("xvs: etcd does not answer: {why}; {STEP}"),
        },
    })
}

/// What to do about an etcd that does not answer. It may have carried out a request whose answer is late.
const STEP: &str = "start it there, or correct `etcd` in [fleet] of xvs.toml; then `xvs fleet` shows whether it has the change";

async fn apply(
    etcd: &mut Etcd,
    text: &str,
    former: Option<u64>,
    confirm_within_seconds: Option<u32>,
) -> Result<u64, String> {
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
    let seen = etcd.keys().await?.seen;
    Err(match (seen.trial, seen.rules) {
        (Some(trial), _) => format!(
            "rules of revision {trial} wait to be confirmed; `xvs fleet confirm` keeps them, `xvs fleet confirm \
             --take-back` ends them"
        ),
        (None, Some(rules)) => {
            format!(
                "the rules in etcd have just become those of revision {rules}; look at `xvs fleet`, and try again"
            )
        }
        (None, None) => {
            "the rules in etcd have just been deleted; look at `xvs fleet`, and try again".to_owned()
        }
    })
}

async fn confirm(etcd: &mut Etcd, verdict: Verdict) -> Result<u64, String> {
    let none = "no rules of the fleet wait to be confirmed; the time may be over, see `xvs fleet`";
    let (revision, text) = etcd.text("trial").await?.ok_or(none)?;
    let mut operations = vec![etcd.delete("trial")];
    if verdict == Verdict::Keep {
        operations.push(etcd.put("rules", &text, 0));
    }
    let compare = etcd.has_revision("trial", Some(revision));
    let committed = etcd.commit(&[compare], &operations).await?;
    if committed.done { Ok(committed.revision) } else { Err(none.to_owned()) }
}
