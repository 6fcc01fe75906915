//! Rules that were applied and wait to be confirmed.

use xvs_dataplane::clock::Millis;
use xvs_model::state::State;

/// Rules that were applied and are not confirmed.
pub(super) struct Unconfirmed {
    pub until: Millis,
    pub former: State,
    pub applied: State,
}
