//! Rules, of which the desired state consists, and the objects that they describe.
//!
//! A [`Rule`] says everything about one object, an [`Object`] only identifies it. Commands, the difference of two
//! states, rules files and the journal are made of both. Not here: the checks of the nouns (the other files of this
//! folder), their texts (`ipvsadm`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Prefix};
use xvs_sched::{ClientLimit, ServiceKey};

use crate::config::access_list::Until;
use crate::config::destination::DestinationOptions;
use crate::config::firewall_mark::MarkRule;
use crate::config::list_key::ListKey;
use crate::config::local_address::LocalAddress;
use crate::config::maintenance::Disabled;
use crate::config::quic_rule::{QuicObject, QuicRule};
use crate::config::service::ServiceOptions;
use crate::config::sync_daemon::{SyncDaemon, SyncRole};
use crate::config::timeouts::Timeouts;

/// One object with all its options. On the socket it has the name of the command that adds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// A service, without its destinations.
    #[serde(rename = "add_service")]
    Service {
        /// Its key.
        key: ServiceKey,
        /// Its options.
        options: ServiceOptions,
    },
    /// A destination.
    #[serde(rename = "add_destination")]
    Destination {
        /// The service that it belongs to.
        service: ServiceKey,
        /// Its endpoint.
        endpoint: Endpoint,
        /// Its options.
        options: DestinationOptions,
    },
    /// The timeouts; a 0 keeps the value in force.
    #[serde(rename = "set_timeouts")]
    Timeouts(Timeouts),
    /// A synchronization daemon.
    #[serde(rename = "start_daemon")]
    Daemon(SyncDaemon),
    /// A mark rule.
    #[serde(rename = "add_mark")]
    Mark(MarkRule),
    /// A local address for FULLNAT.
    #[serde(rename = "add_local")]
    Local(LocalAddress),
    /// What each client of a service may do, whether or not the service exists now.
    #[serde(rename = "set_limit")]
    Limit {
        /// The service.
        service: ServiceKey,
        /// The limit.
        limit: ClientLimit,
    },
    /// Real servers that get no new connections, whatever their weight.
    #[serde(rename = "disable")]
    Disabled(Disabled),
    /// An entry of an access list.
    #[serde(rename = "add_listed")]
    Listed {
        /// The list.
        list: ListKey,
        /// The network.
        prefix: Prefix,
        /// Its end; `None`: it has none.
        until: Option<Until>,
    },
    /// The file of an access list of a service. It is read when the command is carried out, and at each reload.
    #[serde(rename = "set_list_file")]
    ListFile {
        /// The list.
        list: ListKey,
        /// The file.
        path: PathBuf,
    },
    /// A QUIC configuration or a server ID of a service, whether or not the service exists now.
    #[serde(rename = "quic")]
    Quic {
        /// The service.
        service: ServiceKey,
        /// The configuration or the server ID.
        #[serde(rename = "change")]
        rule: QuicRule,
    },
}

/// Which object a rule describes. On the socket it has the name of the command that deletes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Object {
    /// A local address.
    #[serde(rename = "delete_local")]
    Local(IpAddr),
    /// A service with its destinations.
    #[serde(rename = "delete_service")]
    Service(ServiceKey),
    /// A destination of a service.
    #[serde(rename = "delete_destination")]
    Destination {
        /// The service that it belongs to.
        service: ServiceKey,
        /// Its endpoint.
        endpoint: Endpoint,
    },
    /// A mark rule.
    #[serde(rename = "delete_mark")]
    Mark(MarkRule),
    /// Disabled real servers.
    #[serde(rename = "enable")]
    Disabled(Disabled),
    /// The limit of the clients of a service.
    #[serde(rename = "delete_limit")]
    Limit(ServiceKey),
    /// An entry of an access list.
    #[serde(rename = "delete_listed")]
    Listed {
        /// The list.
        list: ListKey,
        /// The network.
        prefix: Prefix,
    },
    /// The file of an access list.
    #[serde(rename = "unset_list_file")]
    ListFile(ListKey),
    /// A QUIC configuration or a server ID of a service.
    #[serde(rename = "quic")]
    Quic {
        /// The service.
        service: ServiceKey,
        /// The configuration or the server ID.
        #[serde(rename = "change")]
        object: QuicObject,
    },
    /// The timeouts, which are always there.
    #[serde(skip)]
    Timeouts,
    /// The synchronization daemon of a role.
    #[serde(rename = "stop_daemon")]
    Daemon(SyncRole),
}

impl Rule {
    /// The object that it describes.
    pub fn object(&self) -> Object {
        match self {
            Self::Service { key, .. } => Object::Service(*key),
            Self::Destination { service, endpoint, .. } => {
                Object::Destination { service: *service, endpoint: *endpoint }
            }
            Self::Timeouts(_) => Object::Timeouts,
            Self::Daemon(daemon) => Object::Daemon(daemon.role),
            Self::Mark(rule) => Object::Mark(rule.clone()),
            Self::Local(local) => Object::Local(local.addr),
            Self::Limit { service, .. } => Object::Limit(*service),
            Self::Disabled(servers) => Object::Disabled(*servers),
            Self::Listed { list, prefix, .. } => Object::Listed { list: *list, prefix: *prefix },
            Self::ListFile { list, .. } => Object::ListFile(*list),
            Self::Quic { service, rule } => Object::Quic { service: *service, object: rule.object() },
        }
    }

    /// The file that it names, which the director reads: of a list, or of a key.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::ListFile { path, .. } => Some(path),
            rule => rule.key_file(),
        }
    }

    /// The file of the key of a QUIC configuration.
    pub fn key_file(&self) -> Option<&Path> {
        match self {
            Self::Quic { rule: QuicRule::Config { options, .. }, .. } => options.key_file.as_deref(),
            _ => None,
        }
    }
}

impl Object {
    /// The service itself, or the service of a destination.
    pub fn service(&self) -> Option<ServiceKey> {
        match *self {
            Self::Service(service) | Self::Destination { service, .. } => Some(service),
            _ => None,
        }
    }

    /// The service itself, or the service of a destination or of a limit.
    pub fn service_or_limited(&self) -> Option<ServiceKey> {
        match *self {
            Self::Limit(service) => Some(service),
            _ => self.service(),
        }
    }
}
