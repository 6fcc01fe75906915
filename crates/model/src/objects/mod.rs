//! Rules, which make up the desired state, the objects that they describe, and the list of the nouns of `xvs`.
//!
//! A [`Rule`] describes one object in full, an [`Object`] only identifies it. Commands, the difference of two states,
//! rules files and the journal consist of both. Services, destinations, timeouts and synchronization daemons come from
//! IPVS (`config/desired_state.rs`). Each other object is a [`Noun`] with its own file, which contains everything
//! specific to it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::{ClientLimit, ServiceKey};

use crate::config::destination::DestinationOptions;
use crate::config::refusal::CommandError;
use crate::config::service::ServiceOptions;
use crate::config::sync_daemon::{SyncDaemon, SyncRole};
use crate::config::timeouts::Timeouts;
use crate::objects::disabled::{Disabled, DisabledServers};
use crate::objects::limit::ServiceLimit;
use crate::objects::list_file::ListFile;
use crate::objects::list_key::ListKey;
use crate::objects::listed::{AccessLists, Listed, ListedKey};
use crate::objects::local::LocalAddress;
use crate::objects::mark::MarkRule;
use crate::objects::note::ServiceNote;
use crate::objects::noun::{Noun, Services, Turn};
use crate::objects::quic::{QuicKey, QuicRule, QuicServices, ServiceQuic};

pub mod disabled;
pub mod limit;
pub mod list_file;
pub mod list_key;
pub mod listed;
pub mod local;
pub mod mark;
pub mod note;
pub mod noun;
pub mod quic;

/// Declares what the state keeps of the nouns, and each noun: its variant, type and key, the field that keeps it, and
/// the names on the socket of the commands that add and delete it. Rules are in the order of this list.
macro_rules! nouns {
    (
        keep { $($(#[$field_doc:meta])* $field:ident: $all:ty,)* }
        $($(#[$doc:meta])* $noun:ident($type:ty) by $key:ty => $of:ident, $add:literal, $delete:literal;)*
    ) => {
        /// All nouns of a state.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub(crate) struct Nouns { $($(#[$field_doc])* pub(crate) $field: $all,)* }

        /// One object with all its options. On the socket it has the name of the command that adds it.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Rule {
            /// A service, without its destinations.
            #[serde(rename = "add_service")]
            Service {
                /// The key of the service.
                key: ServiceKey,
                /// The options.
                options: ServiceOptions,
            },
            /// A destination.
            #[serde(rename = "add_destination")]
            Destination {
                /// The service that it belongs to.
                service: ServiceKey,
                /// The endpoint.
                endpoint: Endpoint,
                /// The options.
                options: DestinationOptions,
            },
            /// The timeouts; a 0 keeps the value in force.
            #[serde(rename = "set_timeouts")]
            Timeouts(Timeouts),
            /// A synchronization daemon.
            #[serde(rename = "start_daemon")]
            Daemon(SyncDaemon),
            $($(#[$doc])* #[serde(rename = $add)] $noun($type),)*
        }

        /// Which object a rule describes. On the socket it has the name of the command that deletes it.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Object {
            /// A service with its destinations.
            #[serde(rename = "delete_service")]
            Service(ServiceKey),
            /// A destination of a service.
            #[serde(rename = "delete_destination")]
            Destination {
                /// The service that it belongs to.
                service: ServiceKey,
                /// The endpoint.
                endpoint: Endpoint,
            },
            /// The timeouts, which are always there.
            #[serde(skip)]
            Timeouts,
            /// The synchronization daemon of a role.
            #[serde(rename = "stop_daemon")]
            Daemon(SyncRole),
            $($(#[$doc])* #[serde(rename = $delete)] $noun($key),)*
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
                    $(Self::$noun(noun) => Object::$noun(noun.key()),)*
                }
            }

            /// Whether the object is changed by its deletion and a new one.
            pub(crate) fn is_replaced(&self) -> bool {
                match self {
                    Self::Service { .. } | Self::Destination { .. } | Self::Timeouts(_) => false,
                    Self::Daemon(_) => true,
                    $(Self::$noun(_) => <$type>::IS_REPLACED,)*
                }
            }

            /// Whether the object ends by itself.
            pub(crate) fn ends(&self) -> bool {
                match self {
                    $(Self::$noun(noun) => noun.ends(),)*
                    _ => false,
                }
            }

            /// When it is added among the commands of one change.
            pub(crate) fn turn(&self) -> Turn {
                match self {
                    Self::Destination { .. } => Turn::Dependent,
                    Self::Service { .. } | Self::Timeouts(_) | Self::Daemon(_) => Turn::Any,
                    $(Self::$noun(noun) => noun.turn(),)*
                }
            }

            /// The arguments of `xvs` that add a noun, perhaps with control characters; `None` if `xvsadm` adds it.
            pub fn arguments(&self) -> Option<String> {
                match self {
                    $(Self::$noun(noun) => Some(noun.added()),)*
                    _ => None,
                }
            }
        }

        impl Object {
            /// The service itself, or the service of a destination or of a noun whose owner is the service's.
            pub fn owned_with(&self) -> Option<ServiceKey> {
                match self {
                    $(Self::$noun(key) => <$type>::service(key),)*
                    _ => self.service(),
                }
            }

            /// The arguments of `xvs` that delete a noun, perhaps with control characters; `None` if `xvsadm` deletes
            /// it.
            pub fn arguments(&self) -> Option<String> {
                match self {
                    $(Self::$noun(key) => Some(<$type>::deleted(key)),)*
                    _ => None,
                }
            }
        }

        impl Nouns {
            /// Checks whether a noun can be added; other rules can.
            ///
            /// # Errors
            /// Those of [`Noun::check_add`].
            pub(crate) fn check_add(&self, rule: &Rule, services: &dyn Services) -> Result<(), CommandError> {
                match rule {
                    $(Rule::$noun(noun) => noun.check_add(&self.$of, services),)*
                    _ => Ok(()),
                }
            }

            /// Checks whether a noun can be deleted; other objects can.
            ///
            /// # Errors
            /// Those of [`Noun::check_delete`].
            pub(crate) fn check_delete(&self, object: &Object) -> Result<(), CommandError> {
                match object {
                    $(Object::$noun(key) => <$type>::check_delete(key, &self.$of),)*
                    _ => Ok(()),
                }
            }

            /// Adds a checked noun; other rules change nothing.
            pub(crate) fn add(&mut self, rule: &Rule) {
                match rule {
                    $(Rule::$noun(noun) => noun.add(&mut self.$of),)*
                    _ => {}
                }
            }

            /// Deletes a checked noun; other objects change nothing.
            pub(crate) fn delete(&mut self, object: &Object) {
                match object {
                    $(Object::$noun(key) => <$type>::delete(key, &mut self.$of),)*
                    _ => {}
                }
            }

            /// The rules that create them.
            pub(crate) fn rules(&self) -> impl Iterator<Item = Rule> {
                let rules = std::iter::empty();
                $(let rules = rules.chain(<$type>::each(&self.$of).map(Rule::$noun));)*
                rules
            }
        }
    };
}

nouns! {
    keep {
        /// In the order of the commands.
        locals: Vec<LocalAddress>,
        disabled: DisabledServers,
        limits: BTreeMap<ServiceKey, ClientLimit>,
        lists: AccessLists,
        quic: QuicServices,
        notes: BTreeMap<ServiceKey, String>,
        /// In the order in which they apply.
        marks: Vec<MarkRule>,
    }
    /// A local address for FULLNAT.
    Local(LocalAddress) by IpAddr => locals, "add_local", "delete_local";
    /// Real servers that get no new connections, whatever their weight.
    Disabled(Disabled) by Disabled => disabled, "disable", "enable";
    /// The limits for each client of a service.
    Limit(ServiceLimit) by ServiceKey => limits, "set_limit", "delete_limit";
    /// An entry of an access list.
    Listed(Listed) by ListedKey => lists, "add_listed", "delete_listed";
    /// The file of an access list.
    ListFile(ListFile) by ListKey => lists, "set_list_file", "unset_list_file";
    /// A QUIC configuration or a server ID of a service.
    Quic(ServiceQuic) by QuicKey => quic, "quic", "quic";
    /// A note at a service.
    Note(ServiceNote) by ServiceKey => notes, "set_note", "delete_note";
    /// A mark rule.
    Mark(MarkRule) by MarkRule => marks, "add_mark", "delete_mark";
}

impl Rule {
    /// The file that it names, which the director reads: of a list, or of a key.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::ListFile(file) => Some(&file.path),
            rule => rule.key_file(),
        }
    }

    /// The file of the key of a QUIC configuration.
    pub fn key_file(&self) -> Option<&Path> {
        match self {
            Self::Quic(ServiceQuic { rule: QuicRule::Config { options, .. }, .. }) => {
                options.key_file.as_deref()
            }
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
}
