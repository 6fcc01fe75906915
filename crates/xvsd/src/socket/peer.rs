//! The peer of a connection to the control socket: its user and its permissions.
//!
//! Determined once for each connection, when it begins. The kernel reports user and groups as they were when the
//! process connected (`SO_PEERCRED`, `SO_PEERGROUPS`).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Group;
use xvs_host::process::Process;
use xvs_model::protocol::request::Access;
use xvs_xdp::peer_groups;

/// A client of the control socket.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The process id; 0 for a process in another PID namespace.
    pub pid: i32,
    /// The user id.
    pub uid: u32,
    /// The permitted requests.
    pub access: Access,
    /// The process, if it may take over: a process of root or of the daemon's user. Members of the group may not take
    /// over, because xvsd kills a process whose take-over fails.
    pub(crate) process: Option<Arc<Process>>,
}

/// Users that may request changes: root, the daemon's user, and the members of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    own_uid: u32,
    group: Option<u32>,
}

impl Rules {
    /// The rules with the group with this name, if the system has it.
    pub(crate) fn of_group(name: &str) -> Self {
        // A group that cannot be looked up has no members.
        let group = Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        Self { own_uid: rustix::process::geteuid().as_raw(), group }
    }

    /// The group's id.
    pub(crate) fn group(self) -> Option<u32> {
        self.group
    }

    /// The process at the other end of `stream`.
    ///
    /// # Errors
    /// The errors of `SO_PEERCRED` and `SO_PEERGROUPS`.
    pub(crate) fn peer(self, stream: &UnixStream) -> io::Result<Peer> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        let uid = credentials.uid();
        let access = self.access(uid, credentials.gid(), &peer_groups(stream.as_fd())?);
        let process = match u32::try_from(credentials.pid()) {
            Ok(number) if self.may_take_over(uid) => Process::of_peer(stream, number).ok().map(Arc::new),
            _ => None,
        };
        Ok(Peer { pid: credentials.pid(), uid, access, process })
    }

    fn may_take_over(self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    fn access(self, uid: u32, gid: u32, groups: &[u32]) -> Access {
        let member = self.group.is_some_and(|group| gid == group || groups.contains(&group));
        if self.may_take_over(uid) || member { Access::Change } else { Access::Read }
    }
}

#[cfg(test)]
mod tests {
    use crate::socket::peer::*;

    #[test]
    fn root_and_the_daemons_user_may_take_over_the_group_may_change_and_others_only_read() {
        let rules = Rules { own_uid: 50, group: Some(990) };
        assert_eq!(rules.access(0, 0, &[]), Access::Change);
        assert_eq!(rules.access(50, 50, &[]), Access::Change);
        assert_eq!(rules.access(1000, 990, &[]), Access::Change);
        assert_eq!(rules.access(1000, 1000, &[27, 990]), Access::Change);
        assert_eq!(rules.access(1000, 1000, &[27]), Access::Read);
        assert!(rules.may_take_over(0) && rules.may_take_over(50) && !rules.may_take_over(1000));
        assert_eq!(Rules { group: None, ..rules }.access(1000, 990, &[990]), Access::Read);
    }

    #[test]
    fn groups_of_a_peer_come_from_the_kernel_and_a_group_is_found_by_its_full_name() {
        let (here, _there) = UnixStream::pair().unwrap();
        let groups: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(peer_groups(here.as_fd()).unwrap(), groups);
        assert_eq!(Rules::of_group("root").group(), Some(0));
        assert_eq!(Rules::of_group("roo").group(), None);
    }
}
