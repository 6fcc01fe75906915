//! Who is at the other end of a connection, and what they may do.
//!
//! Asked once a connection, when it begins. The kernel vouches for user and group (`SO_PEERCRED`); the other groups of
//! the process come from `/proc`, and only if the process there still runs as the user that connected. Whoever
//! cannot be looked up may only read.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_peercred;

use crate::message::Access;

/// A client of the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// What it may ask for.
    pub access: Access,
}

/// Who may change: root, the daemon's own user, and the members of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    own_uid: u32,
    group: Option<u32>,
}

impl Rules {
    /// With the group of this name, if the system has it.
    pub(crate) fn of_group(name: &str) -> Self {
        // Without the file nobody is a member of the group.
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        Self { own_uid: rustix::process::geteuid().as_raw(), group: group_id(&groups, name) }
    }

    /// The group's number.
    pub(crate) fn group(self) -> Option<u32> {
        self.group
    }

    /// Who is at the other end of `stream`.
    ///
    /// # Errors
    /// Those of `SO_PEERCRED`.
    pub(crate) fn peer(self, stream: &UnixStream) -> io::Result<Peer> {
        let credentials = socket_peercred(stream)?;
        let (uid, gid) = (credentials.uid.as_raw(), credentials.gid.as_raw());
        let pid = credentials.pid.as_raw_nonzero().get();
        // A process that has ended has no groups any more.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let access = self.access(uid, gid, &supplementary_groups(&status, uid));
        Ok(Peer { pid, uid, access })
    }

    fn access(self, uid: u32, gid: u32, groups: &[u32]) -> Access {
        let member = self.group.is_some_and(|group| gid == group || groups.contains(&group));
        if uid == 0 || uid == self.own_uid || member { Access::Change } else { Access::Read }
    }
}

/// The number of a group in the text of group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        fields.nth(1)?.parse().ok()
    })
}

/// The groups in the text of proc_pid_status(5), if that process runs as this user.
fn supplementary_groups(status: &str, uid: u32) -> Vec<u32> {
    let numbers = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    // Real, effective, saved, file system: a set-user-ID program connects as its effective one.
    if numbers("Uid:").get(1) == Some(&uid) { numbers("Groups:") } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\txvsadm\nUid:\t1000\t1000\t1000\t1000\nGroups:\t27 990 1000 \n";

    #[test]
    fn root_the_daemons_user_and_the_group_may_change_and_others_only_read() {
        let rules = Rules { own_uid: 50, group: Some(990) };
        assert_eq!(rules.access(0, 0, &[]), Access::Change);
        assert_eq!(rules.access(50, 50, &[]), Access::Change);
        assert_eq!(rules.access(1000, 990, &[]), Access::Change);
        assert_eq!(rules.access(1000, 1000, &[27, 990]), Access::Change);
        assert_eq!(rules.access(1000, 1000, &[27]), Access::Read);
        assert_eq!(Rules { group: None, ..rules }.access(1000, 990, &[990]), Access::Read);
    }

    #[test]
    fn groups_count_only_while_the_process_runs_as_the_user_that_connected() {
        assert_eq!(supplementary_groups(STATUS, 1000), [27, 990, 1000]);
        assert!(supplementary_groups(STATUS, 1001).is_empty());
        assert!(supplementary_groups("", 1000).is_empty());
    }

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nxvs-old:x:989:\nxvs:x:990:alice\n";
        assert_eq!(group_id(groups, "xvs"), Some(990));
        assert_eq!(group_id(groups, "xv"), None);
    }
}
