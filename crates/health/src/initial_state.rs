//! The state that a configuration gives before any check has run.
//!
//! Pure. Used when a file is read, because some faults show only when its services are made, and by `xvs check`.

use std::collections::HashSet;
use std::sync::Arc;

use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::rule::Rule;
use xvs_model::health_checks::fault::{Fault, Place, Severity};
use xvs_model::health_checks::virtual_server::Configuration;

use crate::virtual_server::{InitialNotices, ServiceDestination, VirtualServerState};

/// The state before any check has run, and the faults of what the director refuses: at most one for each position in
/// the file.
pub fn initial_state(configuration: &Configuration) -> (State, Vec<Fault>) {
    let mut state = State::default();
    if let Some(timeouts) = configuration.timeouts() {
        state.apply(&timeouts).expect("timeouts of a configuration are within their limits");
    }
    let (mut refused, mut places) = (Vec::new(), HashSet::new());
    let mut make = |place: &Place, command: Command| {
        let made = state.apply(&command);
        if let Err(error) = &made
            && places.insert(place.clone())
        {
            let text = format!("xvs refuses it: {error}; it is left out");
            refused.push(Fault { place: place.clone(), severity: Severity::Warning, text });
        }
        made.is_ok()
    };
    for virtual_server in &configuration.virtual_servers {
        let (server_state, _) = VirtualServerState::start(
            Arc::new(virtual_server.clone()),
            InitialNotices::Omitted,
            Arc::default(),
        );
        for (key, options) in &virtual_server.services {
            let service = Command::Add(Rule::Service { key: *key, options: options.clone() });
            if !make(&virtual_server.place, service) {
                continue;
            }
            for ServiceDestination { place, endpoint, options } in server_state.destinations(*key) {
                make(place, Command::Add(Rule::Destination { service: *key, endpoint, options }));
            }
            if let Some(limit) = virtual_server.limit {
                make(&virtual_server.place, Command::Add(Rule::Limit { service: *key, limit }));
            }
        }
    }
    (state, refused)
}
