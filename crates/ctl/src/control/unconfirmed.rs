//! Applied rules that wait to be confirmed.

use xvs_dataplane::clock::Millis;
use xvs_model::config::desired_state::State;

/// Applied rules that are not confirmed yet.
pub(super) struct Unconfirmed {
    pub until: Millis,
    pub former: State,
    pub applied: State,
}
