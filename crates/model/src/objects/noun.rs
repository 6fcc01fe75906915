//! The trait of the configured objects that ipvsadm does not have: the nouns of `xvs`, each in its own file.

use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::config::refusal::CommandError;

/// An object that a rule adds and a key deletes.
pub trait Noun: Clone + PartialEq {
    /// Identifies one of them.
    type Key;
    /// All of them, as the desired state keeps them.
    type All;

    /// Whether a change deletes it and adds a new one, instead of editing it in place.
    const IS_REPLACED: bool;

    /// Identifies it.
    fn key(&self) -> Self::Key;

    /// Checks whether it can be added to `all`.
    ///
    /// # Errors
    ///
    /// A sentence that names it, or the error for a duplicate.
    fn check_add(&self, all: &Self::All, services: &dyn Services) -> Result<(), CommandError>;

    /// Checks whether it can be deleted from these.
    ///
    /// # Errors
    /// It is not there.
    fn check_delete(key: &Self::Key, all: &Self::All) -> Result<(), CommandError>;

    /// Adds a checked one.
    fn add(&self, all: &mut Self::All);

    /// Deletes a checked one.
    fn delete(key: &Self::Key, all: &mut Self::All);

    /// The nouns in `all`, in an order in which each can be added.
    fn each(all: &Self::All) -> impl Iterator<Item = Self>;

    /// The arguments of `xvs` that add it.
    fn added(&self) -> String;

    /// The arguments of `xvs` that delete it.
    fn deleted(key: &Self::Key) -> String;

    /// The service whose owner owns it, too.
    fn service(_: &Self::Key) -> Option<ServiceKey> {
        None
    }

    /// When it is added among the commands of one change.
    fn turn(&self) -> Turn {
        Turn::Any
    }

    /// Whether it expires, so that rules without it do not delete it.
    fn ends(&self) -> bool {
        false
    }
}

/// The services beside a noun that is checked.
pub trait Services {
    /// The forwarding methods of a service's destinations; none if the service does not exist.
    fn methods(&self, service: &ServiceKey) -> Vec<ForwardingMethod>;
}

/// When a command is carried out among those of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// A deletion.
    Deleted,
    /// The deletion of a service.
    ServiceDeleted,
    /// After the deletions.
    Any,
    /// After what it needs: a destination after its service, a server ID after a configuration of its length.
    Dependent,
    /// After the destinations, on whose methods it depends.
    Last,
}
