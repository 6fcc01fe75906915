//! What IPVS has and xvs cannot carry out yet.
//!
//! Asked by the control thread for each command after [`State::check`](crate::state::State::check) has accepted it,
//! and before it is applied: what would not be done must be refused, never taken and ignored. Pure. Each capability that
//! is added deletes its lines here.

use crate::message::{Command, CommandError};

/// Whether what a command asks for can be done.
///
/// # Errors
/// [`CommandError::NotSupported`] with the object, what about it is not supported, and what to do instead.
pub fn supported(command: &Command) -> Result<(), CommandError> {
    match command {
        Command::StartDaemon(daemon) => Err(CommandError::NotSupported {
            object: format!("{} daemon", daemon.role.name()),
            what: "connection synchronization is".to_owned(),
            next: "run without it; after a failover clients connect anew".to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::state::{SyncDaemon, SyncRole};

    #[test]
    fn a_refusal_names_the_object_what_is_missing_and_the_next_step() {
        let refused = supported(&Command::StartDaemon(SyncDaemon {
            role: SyncRole::Backup,
            interface: "eth0".to_owned(),
            sync_id: 0,
            max_len_bytes: 1472,
            group: IpAddr::from([224, 0, 0, 81]),
            port: 8848,
            ttl: 1,
        }));
        let said = refused.unwrap_err().to_string();
        assert!(
            said.starts_with("xvs: backup daemon: connection synchronization is not supported yet; run"),
            "{said}"
        );
    }
}
