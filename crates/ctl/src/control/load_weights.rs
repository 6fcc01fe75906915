//! Weights changed by load reports: published, and recorded as events.

use xvs_dataplane::clock::Millis;
use xvs_model::config::load_report::Server;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::Reply;
use xvs_model::report::event::Kind;

use crate::control::Control;
use crate::control::datapath::{Datapath, Late};
use crate::registry::load_feedback::WeightChange;

impl<D: Datapath> Control<D> {
    /// Changes weights by the reported load of a real server.
    pub(super) fn report_load(
        &mut self,
        server: Server,
        load_percent: f64,
        now: Millis,
    ) -> Result<Reply, CommandError> {
        if !(0.0..=100.0).contains(&load_percent) {
            return Err(CommandError::BadSetting {
                key: format!("the load of real server {server}"),
                value: load_percent.to_string(),
                range: "a number from 0 (idle) to 100 (fully loaded)".to_owned(),
            });
        }
        let moved = self.registry.report_load(server, load_percent, &self.settings.feedback, now)?;
        self.publish_weights(&moved)?;
        Ok(Reply::Done)
    }

    /// Publishes weights that have changed, if there are any, and records them.
    pub(super) fn publish_weights(&mut self, moved: &[WeightChange]) -> Result<(), Late> {
        if moved.is_empty() { Ok(()) } else { self.publish_with_weights(moved) }
    }

    /// Publishes a change, and records an event for each weight that it has changed.
    pub(super) fn publish_with_weights(&mut self, moved: &[WeightChange]) -> Result<(), Late> {
        let published = self.publish();
        let events = moved.iter().map(|moved| (moved.to_string(), None));
        self.events.record_all(Kind::Weight, self.epoch(), None, events);
        published
    }
}
