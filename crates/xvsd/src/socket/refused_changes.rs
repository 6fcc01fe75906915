//! Log lines about changes refused for lack of permission, limited to one in [`LOG_INTERVAL`].
//!
//! Called for each denied request, by the threads of clients.

use std::time::{Duration, Instant};

use crate::socket::peer::Peer;

/// Denied changes. A client can send any number, so the log counts most of them.
#[derive(Debug, Default)]
pub(crate) struct RefusedChanges {
    /// Earliest time of the next line.
    quiet_until: Option<Instant>,
    /// Denied changes since the last line.
    unlogged: u64,
}

impl RefusedChanges {
    /// The next log line; `None` if the last one is less than [`LOG_INTERVAL`] old.
    pub(crate) fn line(&mut self, peer: &Peer, what: &str, now: Instant) -> Option<String> {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.unlogged += 1;
            return None;
        }
        self.quiet_until = Some(now + LOG_INTERVAL);
        let others = match std::mem::take(&mut self.unlogged) {
            0 => String::new(),
            others => format!("; {others} more requests were denied since the last line"),
        };
        let Peer { uid, pid, .. } = peer;
        Some(format!("uid {uid} (process {pid}) requested «{what}»: denied{others}"))
    }
}

/// Shortest time between two lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use xvs_model::protocol::request::Access;

    use crate::socket::refused_changes::*;

    #[test]
    fn a_denied_change_is_logged_with_user_and_process_and_further_ones_are_counted() {
        let (mut refused_changes, begin) = (RefusedChanges::default(), Instant::now());
        let peer = Peer { pid: 4711, uid: 1000, access: Access::Read, process: None };
        let first = refused_changes.line(&peer, "xvsadm -C", begin).unwrap();
        assert!(
            first.starts_with("uid 1000 (process 4711) ") && first.ends_with("«xvsadm -C»: denied"),
            "{first}"
        );
        assert!(
            (0..90).all(|_| refused_changes.line(&peer, "xvsadm -C", begin + LOG_INTERVAL / 2).is_none())
        );
        let next = refused_changes.line(&peer, "xvsadm -C", begin + LOG_INTERVAL).unwrap();
        assert!(next.contains("90 more"), "{next}");
    }
}
