//! Texts of xvs's programs that the support code expects in logs and messages.
//!
//! Constants, used at each start of the daemon or of a command. Not here: `ipvsadm`'s output, which the recordings
//! define.

/// Word of the log line that `xvsd` writes when it serves.
pub const READY: &str = "ready";

/// Word of `xvs status` for an interface whose program runs after the kernel has made its `skb`.
pub const GENERIC: &str = "generic";

/// Path of the daemon's socket on each host.
pub const SOCKET: &str = "/run/xvs/xvsd.sock";

/// Whether a log contains [`READY`] as a word: «already in use» does not count.
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
