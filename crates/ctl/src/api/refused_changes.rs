//! What is told of changes that somebody asks for who may not: a line each in the log, but not as many as he likes.
//!
//! Asked for each denied request, by the threads of clients in turn. Not here: who may what (`peer.rs`).

use std::time::{Duration, Instant};

use crate::api::peer::Peer;

/// Denied changes, of which a user can ask any number.
#[derive(Debug, Default)]
pub(crate) struct RefusedChanges {
    /// When the next may be told.
    quiet_until: Option<Instant>,
    /// How many have not been.
    unlogged: u64,
}

impl RefusedChanges {
    /// The line for the log, at most one in [`LOG_INTERVAL`].
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
        Some(format!("uid {uid} (process {pid}) asked for «{what}», which was denied{others}"))
    }
}

/// Between two lines about denied changes.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use crate::api::refused_changes::*;
    use xvs_model::request::Access;

    #[test]
    fn denied_changes_are_told_by_user_and_process_and_a_flood_of_them_by_its_number() {
        let (mut refused_changes, begin) = (RefusedChanges::default(), Instant::now());
        let peer = Peer { pid: 4711, uid: 1000, access: Access::Read };
        let first = refused_changes.line(&peer, "xvsadm -C", begin).unwrap();
        assert!(
            first.starts_with("uid 1000 (process 4711) ") && first.ends_with("«xvsadm -C», which was denied"),
            "{first}"
        );
        assert!(
            (0..90).all(|_| refused_changes.line(&peer, "xvsadm -C", begin + LOG_INTERVAL / 2).is_none())
        );
        let next = refused_changes.line(&peer, "xvsadm -C", begin + LOG_INTERVAL).unwrap();
        assert!(next.contains("90 more"), "{next}");
    }
}
