//! Commands, which change the desired state.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::config::destination::DestinationOptions;
use crate::config::service::ServiceOptions;
use crate::objects::{Object, Rule};

/// One change of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Replaces all options of a service; its destinations stay.
    EditService {
        /// The key of the service.
        key: ServiceKey,
        /// All its new options.
        options: ServiceOptions,
    },
    /// Replaces all options of a destination, which keeps its position.
    EditDestination {
        /// The service that it belongs to.
        service: ServiceKey,
        /// The endpoint of the destination.
        endpoint: Endpoint,
        /// All its new options.
        options: DestinationOptions,
    },
    /// Deletes all services.
    Flush,
    /// Zeroes the counters of one service and its destinations, or of all.
    Zero(Option<ServiceKey>),
    /// Adds an object: a destination in front of the others, a mark rule after the others. Timeouts, limits, disabled
    /// real servers, and entries and files of access lists replace what was there. A QUIC configuration or server ID
    /// may be there already if it is equal, any other object may not.
    #[serde(untagged)]
    Add(Rule),
    /// Deletes an object. Connections continue.
    #[serde(untagged)]
    Delete(Object),
}

impl From<Rule> for Command {
    fn from(rule: Rule) -> Self {
        Self::Add(rule)
    }
}

impl Command {
    /// The object that it changes; `None` if it changes all services, or only counters.
    pub fn object(&self) -> Option<Object> {
        match self {
            Self::Add(rule) => Some(rule.object()),
            Self::Delete(object) => Some(object.clone()),
            Self::EditService { key, .. } => Some(Object::Service(*key)),
            Self::EditDestination { service, endpoint, .. } => {
                Some(Object::Destination { service: *service, endpoint: *endpoint })
            }
            Self::Flush | Self::Zero(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_str, from_value, to_value};

    use crate::config::command::*;

    #[test]
    fn commands_have_the_json_form_that_clients_and_journals_of_0_2_0_have() {
        // Written by 0.2.0.
        for line in include_str!("commands.jsonl").lines() {
            let form: Value = from_str(line).unwrap();
            let command: Command = from_value(form.clone()).unwrap();
            assert_eq!(to_value(command).unwrap(), form);
        }
        for unknown in [r#""zero""#, r#"{"delete_timeouts": null}"#, r#"{"add_service": {}}"#, r#"{}"#] {
            assert!(from_str::<Command>(unknown).is_err(), "{unknown}");
        }
    }
}
