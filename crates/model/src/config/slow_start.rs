//! Which services can have a slow start.

use xvs_sched::{ServiceKey, scheduler};

use crate::config::refusal::CommandError;
use crate::config::service::ServiceOptions;

/// The longest slow start, in seconds: a day.
pub const SLOW_START_MAX_SECONDS: u32 = 86_400;

/// Refuses a slow start that is too long, or whose scheduler has none.
///
/// # Errors
/// The reason and the next step.
pub(super) fn check(key: &ServiceKey, options: &ServiceOptions) -> Result<(), CommandError> {
    match options.slow_start_seconds {
        None => Ok(()),
        Some(seconds) if !(1..=SLOW_START_MAX_SECONDS).contains(&seconds) => Err(CommandError::invalid(
            format!("a slow start takes 1 to {SLOW_START_MAX_SECONDS} seconds, a day, not {seconds}"),
        )),
        _ if scheduler::full_share(&options.scheduler).is_some() => Ok(()),
        _ => Err(CommandError::NotSupported {
            object: format!("service {key}"),
            what: format!(
                "--slow-start with scheduler {}, which does not share connections, is",
                options.scheduler
            ),
            next: "leave it out, or take another scheduler, such as wlc".to_owned(),
        }),
    }
}
