//! Properties that depend on an interface's driver: the size of its frames, and whether packets may have partial
//! checksums.
//!
//! Looked up by the driver's name when an interface is attached. Sources: the kernel's drivers, at the functions named
//! here; docs/bare-metal.md lists the drivers that were tested. `device.rs` reads properties that the kernel reports.

/// The size of a frame in bytes, for packets of up to `mtu` bytes or fragments of them in several buffers: half a page
/// if the driver is known to receive such packets in it, otherwise a page. In whole pages a packet of 9000 bytes takes
/// three frames; in halves it would take six.
pub fn frame_bytes(driver: &str, mtu: u32) -> u32 {
    let takes_halves = COPIED.contains(&driver) || FINE_BUFFERS.contains(&driver);
    let small = takes_halves && mtu + LINK_HEADER_BYTES + HEADROOM_BYTES <= SMALL_FRAME_BYTES;
    if small { SMALL_FRAME_BYTES } else { LARGE_FRAME_BYTES }
}

/// Whether a driver may deliver packets with partial checksums, which the sender left to its device: virtual devices,
/// which pass packets on unchanged, and bridges, whose ports may be virtual devices.
pub fn leaves_checksums(driver: &str) -> bool {
    matches!(driver, "veth" | "netkit" | "macvlan" | "tun" | "virtio_net" | "vif" | BRIDGE)
}

/// The name of the driver of bridges.
pub(super) const BRIDGE: &str = "bridge";

/// Virtual devices without zero-copy: the kernel copies a packet into any frame that is large enough.
const COPIED: [&str; 6] = ["veth", "netkit", "macvlan", "tun", "vif", BRIDGE];

/// Drivers that in zero-copy mode give the card the whole frame after its headroom, in steps of at most 256 bytes:
/// `i40e_configure_rx_ring`, `ice_setup_rx_ctx` (128 bytes), `mlx5e_rx_get_linear_sz_xsk` (1 byte).
///
/// Others use less, and truncate or lose larger packets. `igb_setup_srrctl`, `igc_configure_rx_ring` and, for the
/// 82599, `ixgbe_configure_srrctl` set buffers in steps of 1 KiB: 1024 bytes of half a page, 3072 bytes of a page.
/// virtio_net reserves 320 bytes after the packet (`virtnet_add_recvbuf_xsk`): 1472 bytes of half a page remain.
const FINE_BUFFERS: [&str; 3] = ["i40e", "ice", "mlx5_core"];

/// The headroom of a received packet. Outer headers are written into it (linux/bpf.h, XDP_PACKET_HEADROOM).
pub(super) const HEADROOM_BYTES: u32 = 256;
/// An Ethernet header with two tags, and the checksum of the frame: `xp_assign_dev` (net/xdp/xsk_buff_pool.c) adds this
/// to the MTU when it decides whether a packet fits a frame in zero-copy mode.
pub(super) const LINK_HEADER_BYTES: u32 = 26;
/// The smallest frame that the kernel accepts (net/xdp/xdp_umem.c, XDP_UMEM_MIN_CHUNK_SIZE), and a page.
pub(super) const SMALL_FRAME_BYTES: u32 = 2048;
const LARGE_FRAME_BYTES: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_half_a_page_only_for_drivers_that_are_known_to_receive_whole_packets_in_it() {
        for driver in ["veth", "i40e", "ice", "mlx5_core"] {
            assert_eq!(frame_bytes(driver, 1500), 2048, "{driver}");
            assert_eq!(frame_bytes(driver, 1766), 2048, "{driver}: with two tags it fits exactly");
            assert_eq!(frame_bytes(driver, 1767), 4096, "{driver}");
        }
        for driver in ["igb", "igc", "ixgbe", "virtio_net", "another"] {
            assert_eq!(frame_bytes(driver, 1500), 4096, "{driver}");
            assert_eq!(frame_bytes(driver, 9000), 4096, "{driver}");
        }
    }
}
