//! The kernel's version, for messages about features that an older kernel lacks.
//!
//! The version decides nothing: a vendor's kernel may have features that its version number does not indicate.

use std::fs;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

/// A file that contains the kernel's release, such as `6.1.0-50-amd64`.
pub const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The first kernel with the BPF operations that the programs use: atomics that return a value.
pub const ATOMICS: (u32, u32) = (5, 12);

/// The message if the kernel, or a unit's system call filter, does not permit AF_XDP.
pub(crate) const NO_SOCKETS: &str = "there are no AF_XDP sockets, by which xvsd receives packets; boot a kernel with \
    CONFIG_XDP_SOCKETS, or add AF_XDP to the unit's RestrictAddressFamilies=";

/// Major and minor number of a release.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The features that the programs need and this kernel release lacks, with the next step; `None` if the release
/// indicates none.
pub fn lack(release: &str) -> Option<String> {
    let (major, minor) = ATOMICS;
    version(release).filter(|version| *version < ATOMICS).map(|_| {
        format!(
            "Linux {release} lacks what the XDP program of xvsd needs (compare-and-swap of BPF); boot {major}.{minor} or later"
        )
    })
}

/// The features that the running kernel lacks, AF_XDP included, with the next step; `None` if there are none.
pub(crate) fn present_lack() -> Option<String> {
    let release = fs::read_to_string(RELEASE).unwrap_or_default();
    lack(release.trim()).or_else(|| {
        let refusal = socket(AddressFamily::XDP, SocketType::RAW, None).err();
        (refusal == Some(Errno::AFNOSUPPORT)).then(|| NO_SOCKETS.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_before_5_12_lacks_something_and_others_and_unknown_releases_do_not() {
        for old in ["5.10.0-32-amd64", "5.11.22", "4.19.0"] {
            let said = lack(old).unwrap();
            assert!(said.contains(old) && said.ends_with("boot 5.12 or later"), "{said}");
        }
        assert_eq!(["5.12.0", "6.1.0-50-amd64", "7.3-rc1", "next"].map(lack), [const { None }; 4]);
    }
}
