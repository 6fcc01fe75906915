//! The times until real servers' first replies, in the last full minute.
//!
//! The control thread calls [`ResponseMinutes::record`] with the samples in `history.rs`; once a minute it reads the
//! workers' histograms and keeps the counts that have been added since. Memory: for each destination with measured
//! connections two histograms, some 200 bytes each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xvs_ctl::registry::responses::responses;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::{DestinationId, Snapshot};
use xvs_model::report::response::ResponseTimes;

use crate::lock::lock;

/// A full minute.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Times by destination. Destinations without a measured connection are left out.
pub type ResponsesOf = HashMap<DestinationId, ResponseTimes>;

/// The times of the last full minute. The control thread writes, any thread may read.
#[derive(Debug)]
pub struct ResponseMinutes(Mutex<Minutes>);

#[derive(Debug)]
struct Minutes {
    /// When the present minute began.
    begun: Millis,
    /// The times since the start until then.
    before: ResponsesOf,
    /// The times of the minute that ended then.
    last: Arc<ResponsesOf>,
}

impl ResponseMinutes {
    /// The times of a daemon that starts at this time.
    pub fn since(begun: Millis) -> Self {
        Self(Mutex::new(Minutes { begun, before: HashMap::new(), last: Arc::default() }))
    }

    /// Ends the minute if it is over.
    pub fn record(&self, now: Millis, snapshot: &Snapshot) {
        let mut minutes = lock(&self.0);
        if minutes.begun.until(now) < MINUTE {
            return;
        }
        let all: ResponsesOf = snapshot
            .services
            .iter()
            .flat_map(|service| &service.members)
            .map(|member| (member.id, responses(&member.live)))
            .filter(|(_, times)| !times.is_empty())
            .collect();
        let none = ResponseTimes::default();
        let of_minute = all
            .iter()
            .map(|(id, times)| (*id, times.since(minutes.before.get(id).unwrap_or(&none))))
            .filter(|(_, times)| !times.is_empty())
            .collect();
        *minutes = Minutes { begun: now, before: all, last: Arc::new(of_minute) };
    }

    /// The times of the last full minute.
    pub fn last(&self) -> Arc<ResponsesOf> {
        lock(&self.0).last.clone()
    }
}
