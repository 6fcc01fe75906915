//! The state that results from a configuration before any check has run.
//!
//! Pure. Used when a file is read, because some faults become apparent only when its services are created, and by `xvs
//! check`.

use std::collections::HashSet;
use std::sync::Arc;

use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::health_checks::fault::{Fault, Place, Severity};
use xvs_model::health_checks::virtual_server::Configuration;
use xvs_model::objects::Rule;
use xvs_model::objects::limit::ServiceLimit;

use crate::virtual_server::{InitialNotices, Reloaded, ServiceDestination, VirtualServerState};

/// The state before any check has run, and the director's refusals as faults: at most one for each position in the
/// file.
pub fn initial_state(configuration: &Configuration) -> (State, Vec<Fault>) {
    let mut state = State::default();
    if let Some(timeouts) = configuration.timeouts() {
        state.apply(&timeouts).expect("timeouts of a configuration are within their limits");
    }
    let mut making = Making { state, refused: Vec::new(), places: HashSet::new() };
    for virtual_server in &configuration.virtual_servers {
        let Reloaded { state: server_state, .. } = VirtualServerState::start(
            Arc::new(virtual_server.clone()),
            InitialNotices::Omitted,
            Arc::default(),
        );
        for (key, options) in &virtual_server.services {
            let service = Command::Add(Rule::Service { key: *key, options: options.clone() });
            if !making.apply(&virtual_server.place, &service) {
                continue;
            }
            for ServiceDestination { place, endpoint, options } in server_state.destinations(*key) {
                making.apply(place, &Command::Add(Rule::Destination { service: *key, endpoint, options }));
            }
            if let Some(limit) = virtual_server.limit {
                making.apply(
                    &virtual_server.place,
                    &Command::Add(Rule::Limit(ServiceLimit { service: *key, limit })),
                );
            }
        }
    }
    (making.state, making.refused)
}

/// A state under construction, and the refusals.
struct Making {
    state: State,
    refused: Vec<Fault>,
    /// The positions in `refused`.
    places: HashSet<Place>,
}

impl Making {
    /// Applies a command that results from this position in the file. Returns whether the state accepts it.
    fn apply(&mut self, place: &Place, command: &Command) -> bool {
        let Err(error) = self.state.apply(command) else { return true };
        if self.places.insert(place.clone()) {
            let text = format!("xvs refuses it: {error}; it is left out");
            self.refused.push(Fault { place: place.clone(), severity: Severity::Warning, text });
        }
        false
    }
}
