//! Applied rules that wait to be confirmed.

use xvs_dataplane::clock::Millis;
use xvs_model::config::desired_state::State;

use crate::control::settings::TimeoutSources;

/// Applied rules that are not confirmed yet.
pub(super) struct Unconfirmed {
    pub until: Millis,
    pub former: State,
    pub applied: State,
    /// The sources of the former timeouts.
    pub timeout_sources: TimeoutSources,
}
