//! The modes in which an interface's frames reach the sockets (native or generic XDP, zero-copy or copy), and the
//! settings that each mode forbids.
//!
//! Checked once, when an interface is attached. A setting that would corrupt traffic is refused, with the command that
//! changes it. `attach.rs` tries the modes in order. Source: the kernel's Documentation/networking/af_xdp.rst, and
//! net/core/dev.c for generic mode.

use std::num::NonZeroU32;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use super::drivers::{BRIDGE, frame_bytes};
use super::sys::{Ethtool, FLAG_LRO, FLAG_RX_VLAN, Request, passes_several_buffers};

/// The largest MTU in bytes at which drivers pass a packet to XDP in one buffer: a page of 4096 bytes, less 256 before
/// the packet, 320 that the kernel reserves after it, and the Ethernet header with two tags.
pub const ONE_BUFFER_MTU: u32 = 4096 - 256 - 320 - 22;

/// This machine's MTU limit, if there is one: [`ONE_BUFFER_MTU`] for kernels before 6.6, which pass no packet in
/// several buffers to AF_XDP. Determined by trying.
///
/// # Errors
///
/// The kernel's error if it has no AF_XDP.
pub fn mtu_limit() -> io::Result<Option<u32>> {
    Ok((!passes_several_buffers()?).then_some(ONE_BUFFER_MTU))
}

/// Where the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// In the driver, before the kernel allocates memory for the frame.
    Native,
    /// In the kernel's receive path, for drivers without XDP. Slower, and always with a copy.
    Generic,
}

impl Mode {
    /// The kernel's flag for the mode (linux/if_link.h: `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`).
    pub(super) fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// The mode that the operator requests for an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WantedMode {
    /// Native before generic. Zero-copy before copy, unless the program itself forwards packets.
    #[default]
    Auto,
    /// Native before generic, and zero-copy; any other mode is not what the operator expects.
    ZeroCopy,
    /// Native if the driver supports it, and the kernel copies.
    Copy,
    /// Generic, even if the driver supports native mode.
    Generic,
}

/// What an operator wants of an interface: the section `[interfaces.NAME]` of xvs.toml.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// `"auto"`, `"zero-copy"`, `"copy"` or `"generic"`.
    pub mode: WantedMode,
    /// The number of receive queues that xvsd sets before it opens its sockets. Default: unchanged.
    pub queues: Option<NonZeroU32>,
}

/// Whether the kernel copies frames between its memory and the UMEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyMode {
    /// No copy: drivers use the frames of the UMEM.
    ZeroCopy,
    /// Copy, because this interface supports no other mode or must not use one, or because of [`OFFLOAD`] or
    /// [`RECEIVE_RING`].
    Copy {
        /// The interface, or the other reason.
        because_of: String,
    },
}

/// The reason to copy although zero-copy is possible: the program itself forwards most packets, and could forward a
/// frame of the UMEM only after copying it.
pub const OFFLOAD: &str = "offload";
/// The reason to copy if there would be fewer frames than descriptors in the card's ring. igb then reads old
/// descriptors as new packets (seen, `igb_clean_rx_irq_zc`), and ice and i40e are reported to stop receiving.
pub const RECEIVE_RING: &str = "receive_ring";

impl fmt::Display for CopyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroCopy => f.write_str("zero-copy"),
            Self::Copy { because_of } => write!(f, "copy (because of {because_of})"),
        }
    }
}

/// The reason why an interface's settings would corrupt traffic through the director.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; `{mend}` fixes it")]
pub struct Refusal {
    /// The reason, as a clause.
    pub reason: &'static str,
    /// The command that removes the reason.
    pub mend: String,
}

/// The interface settings on which sockets depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The largest packet that the interface sends, in bytes, without link header.
    pub mtu: u32,
    /// The number of receive queues.
    pub receive_queues: u32,
    /// The size of a frame in bytes, for the interface's packets or their fragments in several buffers.
    pub(super) frame_bytes: u32,
    flags: u32,
    gro: u32,
    /// The largest MTU that the kernel allows.
    mtu_limit: Option<u32>,
}

impl Settings {
    pub(super) fn of(interface: &str) -> io::Result<Self> {
        let mut request = Request::new(interface)?;
        let mtu = request.mtu()?;
        let receive_queues = request.receive_queues()?;
        let mtu_limit = if mtu > ONE_BUFFER_MTU { mtu_limit()? } else { None };
        let driver = request.driver()?;
        // A bridge itself receives nothing: the offloads of its ports count (`refusal_of_port`).
        let (flags, gro) = match driver == BRIDGE {
            true => (0, 0),
            false => (request.ethtool(Ethtool::Flags)?, request.ethtool(Ethtool::Gro)?),
        };
        Ok(Self { mtu, receive_queues, frame_bytes: frame_bytes(&driver, mtu), flags, gro, mtu_limit })
    }

    /// Whether sockets that were opened for `former` miss packets with these settings: queues have no socket, or
    /// packets exceed a frame.
    pub fn needs_new_sockets(self, former: Self) -> bool {
        self.receive_queues != former.receive_queues
            || self.frame_bytes > former.frame_bytes
            || self.needs_chains() && !former.needs_chains()
    }

    /// Whether packets may have several buffers.
    pub(super) fn needs_chains(self) -> bool {
        self.mtu > ONE_BUFFER_MTU
    }

    /// The first setting of a bridge port that forbids attaching the bridge: one that merges packets. Tags are hidden
    /// in any case, because the kernel removes them before the bridge gets the packet.
    pub(super) fn refusal_of_port(self, port: &str) -> Option<Refusal> {
        Self { mtu: 0, flags: self.flags & !FLAG_RX_VLAN, ..self }.refusal(port, Mode::Generic)
    }

    /// The setting that forbids attaching an interface with VLANs on it, in any mode.
    pub(super) fn refusal_of_tags(self, interface: &str) -> Option<Refusal> {
        (self.flags & FLAG_RX_VLAN != 0).then(|| Refusal {
            reason: "its card would hide the tags of its VLANs from the director",
            mend: format!("ethtool -K {interface} rxvlan off"),
        })
    }

    /// The first setting that forbids attaching in `mode`.
    pub(super) fn refusal(self, interface: &str, mode: Mode) -> Option<Refusal> {
        if let Some(limit) = self.mtu_limit.filter(|limit| self.mtu > *limit) {
            let reason = "its MTU lets in packets of several buffers, which kernels before Linux 6.6 do not pass to AF_XDP";
            return Some(Refusal { reason, mend: format!("ip link set dev {interface} mtu {limit}") });
        }
        if mode == Mode::Native {
            return None;
        }
        let (reason, offload) = if self.gro != 0 {
            ("in generic mode GRO would merge packets before the director sees them", "gro")
        } else if self.flags & FLAG_LRO != 0 {
            ("in generic mode LRO would merge packets before the director sees them", "lro")
        } else if self.flags & FLAG_RX_VLAN != 0 {
            ("in generic mode the interface would hide VLAN tags from the director", "rxvlan")
        } else {
            return None;
        };
        Some(Refusal { reason, mend: format!("ethtool -K {interface} {offload} off") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Settings =
        Settings { mtu: 1500, receive_queues: 1, frame_bytes: 2048, flags: 0, gro: 0, mtu_limit: None };

    #[test]
    fn other_queues_and_packets_larger_than_a_frame_need_new_sockets() {
        let of = |mtu| Settings { mtu, frame_bytes: frame_bytes("veth", mtu), ..PLAIN };
        let needs = |mtu, receive_queues| Settings { receive_queues, ..of(mtu) }.needs_new_sockets(PLAIN);
        assert!(needs(1500, 2) && needs(3000, 1) && needs(9000, 1));
        assert!(of(3499).needs_new_sockets(of(3498)), "sockets for several buffers");
        assert!(!of(9000).needs_new_sockets(of(3499)));
        assert!(!needs(1500, 1) && !needs(1280, 1) && !needs(1600, 1));
        assert!(!PLAIN.needs_new_sockets(of(3000)), "small packets fit large frames");
    }

    #[test]
    fn unsuitable_settings_are_refused_with_the_command_that_corrects_them() {
        let mend = |settings: Settings, mode| settings.refusal("eth0", mode).map(|refusal| refusal.mend);
        assert_eq!(ONE_BUFFER_MTU, 3498);
        for mode in [Mode::Native, Mode::Generic] {
            assert_eq!(mend(PLAIN, mode), None);
            assert_eq!(mend(Settings { mtu: 9000, ..PLAIN }, mode), None);
            let old = Settings { mtu_limit: Some(3498), ..PLAIN };
            assert_eq!(mend(Settings { mtu: 3498, ..old }, mode), None);
            let large = mend(Settings { mtu: 3499, ..old }, mode);
            assert_eq!(large.as_deref(), Some("ip link set dev eth0 mtu 3498"));
        }
        for (settings, what) in [
            (Settings { gro: 1, ..PLAIN }, "ethtool -K eth0 gro off"),
            (Settings { flags: FLAG_LRO, ..PLAIN }, "ethtool -K eth0 lro off"),
            (Settings { flags: FLAG_RX_VLAN, ..PLAIN }, "ethtool -K eth0 rxvlan off"),
        ] {
            assert_eq!(mend(settings, Mode::Generic).as_deref(), Some(what));
            assert_eq!(
                mend(settings, Mode::Native),
                None,
                "drivers that run XDP do not merge, and it may have no VLANs"
            );
            let of_tags = settings.refusal_of_tags("eth0").map(|refusal| refusal.mend);
            assert_eq!(of_tags.as_deref(), Some(what).filter(|_| settings.flags & FLAG_RX_VLAN != 0));
            let of_port = settings.refusal_of_port("eth0").map(|refusal| refusal.mend);
            assert_eq!(of_port.as_deref(), Some(what).filter(|_| settings.flags != FLAG_RX_VLAN));
        }
        assert_eq!(
            Settings { mtu: 9000, ..PLAIN }.refusal_of_port("eth0"),
            None,
            "the bridge has an MTU of its own"
        );
    }
}
