//! The path MTU to a real server, as reported by routers' ICMP errors.
//!
//! A worker learns it from an ICMP error, and all workers use it from their next packet on. As in the kernel, it
//! expires after ten minutes, because the path may have changed. Cost: one load for each packet.
//! `general_path/icmp_error.rs` decides which errors are accepted.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use xvs_proto::ipv6;

use crate::clock::Millis;

/// The path MTU to one address, shared by all destinations at that address.
#[derive(Debug, Default)]
pub struct PathMtu {
    /// The second at which it expires in the upper half, the MTU in bytes in the lower; 0 if unknown.
    word: AtomicU64,
}

impl PathMtu {
    /// The path MTU in bytes; [`u32::MAX`] if it is unknown or has expired.
    pub fn at(&self, now: Millis) -> u32 {
        // Relaxed, here and below: only this integer is shared.
        known(self.word.load(Ordering::Relaxed), now)
    }

    /// A copy that changes independently.
    pub(crate) fn separate_copy(&self) -> Self {
        Self { word: AtomicU64::new(self.word.load(Ordering::Relaxed)) }
    }

    /// Records the path MTU to `dest` that a router has reported. A value above the known path MTU is not accepted. A
    /// value below the minimum MTU of a path is raised to it. Returns whether the path MTU has changed.
    pub fn learn(&self, mtu: u32, dest: IpAddr, now: Millis) -> bool {
        let mtu = mtu.max(match dest {
            IpAddr::V4(_) => LEAST_V4,
            IpAddr::V6(_) => ipv6::MIN_MTU,
        });
        let forgotten = now.0 / 1000 + LASTS_SECONDS;
        // Refused if the known path MTU is smaller.
        self.word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                (mtu <= known(word, now)).then_some(forgotten << 32 | u64::from(mtu))
            })
            .is_ok_and(|before| known(before, now) != mtu)
    }
}

fn known(word: u64, now: Millis) -> u32 {
    if now.0 / 1000 < word >> 32 { word as u32 } else { u32::MAX }
}

/// The minimum accepted path MTU over IPv4, so that a forged error does little harm (kernel `net.ipv4.route.min_pmtu`).
const LEAST_V4: u32 = 552;
/// The time until expiry, in seconds (kernel `net.ipv4.route.mtu_expires`).
const LASTS_SECONDS: u64 = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_mtu_only_decreases_until_it_expires_and_not_below_the_least_possible() {
        let (v4, v6) = (IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap());
        let (path, start) = (PathMtu::default(), Millis(7_000_500));
        assert_eq!(path.at(start), u32::MAX);
        assert!(path.learn(1400, v4, start));
        assert!(!path.learn(1450, v4, Millis(7_300_000)));
        assert_eq!(path.at(Millis(7_599_999)), 1400);
        assert!(!path.learn(1400, v4, Millis(7_599_999)));
        assert_eq!(path.at(Millis(7_600_000)), 1400, "it was reported again");
        assert_eq!(path.at(Millis(8_199_000)), u32::MAX);
        path.learn(1450, v4, Millis(8_199_000));
        assert_eq!(path.at(Millis(8_199_000)), 1450, "an expired value is ignored");
        path.learn(0, v4, Millis(8_199_000));
        assert_eq!(path.at(Millis(8_199_000)), 552);
        let path = PathMtu::default();
        path.learn(600, v6, start);
        assert_eq!(path.at(start), 1280);
    }
}
