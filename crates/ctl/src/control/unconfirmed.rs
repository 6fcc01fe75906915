//! Applied rules that are not confirmed yet.

use xvs_dataplane::clock::Millis;
use xvs_model::config::desired_state::State;

use crate::control::settings::TimeoutSources;

/// Applied rules that are not confirmed yet.
pub(super) struct Unconfirmed {
    pub(super) until: Millis,
    pub(super) former: State,
    pub(super) applied: State,
    /// The sources of the former timeouts.
    pub(super) timeout_sources: TimeoutSources,
}
