//! The words of xvs's programs that the tests look for: all that they know of its logs and messages.
//!
//! Read whenever the daemon or a command is started; constants only. A message that changes is changed
//! here and nowhere else in the tests. Not here: what `ipvsadm` prints, which the recordings fix.

/// Word of the log line by which `xvsd` says that it serves.
pub const READY: &str = "ready";

/// Word by which `xvs status` says that an interface's program runs after the kernel made its `skb`.
pub const GENERIC: &str = "generic";

/// The daemon's socket, as each host sees it.
pub const SOCKET: &str = "/run/xvs/xvsd.sock";

/// Whether a log says [`READY`], as a word: «already in use» does not count.
pub fn says_ready(log: &str) -> bool {
    log.split(|letter: char| !letter.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case(READY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_counts_only_as_a_separate_word() {
        assert!(says_ready("INFO xvsd: Ready, 2 workers"));
        assert!(!says_ready("the socket is already in use"));
    }
}
