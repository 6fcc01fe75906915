//! What routers have told of the way to a real server: the largest packet that passes.
//!
//! Learnt by a worker from an ICMP error, and obeyed by all from their next packet on. As the kernel's, it is forgotten
//! after ten minutes, when the way may have become wider. Cost: one load a packet. Not here: which errors are believed
//! (`flow/icmp_error.rs`), and the MTU of links and routes (`egress`).

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use xvs_proto::ipv6;

use crate::clock::Millis;

/// The path MTU to one address, shared by all destinations there.
#[derive(Debug, Default)]
pub struct PathMtu {
    /// The second at which it is forgotten, and bytes; 0: nothing is known.
    word: AtomicU64,
}

impl PathMtu {
    /// What was learnt, in bytes; [`u32::MAX`] if nothing was, or it is too long ago.
    pub fn at(&self, now: Millis) -> u32 {
        // Relaxed, here and below: the word is the whole of what is shared.
        known(self.word.load(Ordering::Relaxed), now)
    }

    /// A copy that learns by itself.
    pub(crate) fn separate_copy(&self) -> Self {
        Self { word: AtomicU64::new(self.word.load(Ordering::Relaxed)) }
    }

    /// Takes in what a router of the way to `dest` says. It is never believed to be wider than it was, nor narrower than
    /// any way may be.
    pub fn learn(&self, mtu: u32, dest: IpAddr, now: Millis) {
        let least = match dest {
            IpAddr::V4(_) => LEAST_V4,
            IpAddr::V6(_) => ipv6::MIN_MTU,
        };
        let mtu = mtu.max(least);
        let forgotten = now.0 / 1000 + LASTS_SECONDS;
        let learnt = |word| (mtu <= known(word, now)).then_some(forgotten << 32 | u64::from(mtu));
        // Refused where the way is known to be narrower.
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learnt);
    }
}

fn known(word: u64, now: Millis) -> u32 {
    if now.0 / 1000 < word >> 32 { word as u32 } else { u32::MAX }
}

/// Narrower ways over IPv4 are not believed in, so that a lie costs little (kernel `net.ipv4.route.min_pmtu`).
const LEAST_V4: u32 = 552;
/// Kernel `net.ipv4.route.mtu_expires`.
const LASTS_SECONDS: u64 = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_gets_narrower_until_ten_minutes_have_passed_and_never_narrower_than_any_way_is() {
        let (v4, v6) = (IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap());
        let (path, start) = (PathMtu::default(), Millis(7_000_500));
        assert_eq!(path.at(start), u32::MAX);
        path.learn(1400, v4, start);
        path.learn(1450, v4, Millis(7_300_000));
        assert_eq!(path.at(Millis(7_599_999)), 1400);
        path.learn(1400, v4, Millis(7_599_999));
        assert_eq!(path.at(Millis(7_600_000)), 1400, "it was said again");
        assert_eq!(path.at(Millis(8_199_000)), u32::MAX);
        path.learn(1450, v4, Millis(8_199_000));
        assert_eq!(path.at(Millis(8_199_000)), 1450, "what is forgotten does not count");
        path.learn(0, v4, Millis(8_199_000));
        assert_eq!(path.at(Millis(8_199_000)), 552);
        let path = PathMtu::default();
        path.learn(600, v6, start);
        assert_eq!(path.at(start), 1280);
    }
}
