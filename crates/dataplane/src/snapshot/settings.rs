//! Timeouts and settings of the data plane.

use std::time::Duration;

use xvs_proto::{Packet, Protocol, tcp};
use xvs_sched::ForwardingMethod;

use crate::conn;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;

/// The settings of `xvsadm --set` and of the `[ipvs]` keys of `xvs.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Timeout of an established TCP connection.
    pub tcp_established: Duration,
    /// Timeout of a TCP connection of which one end has sent a FIN.
    pub tcp_fin_wait: Duration,
    /// Timeout of a UDP connection.
    pub udp: Duration,
    /// Maximum number of ICMP errors that a worker sends per second; 0 means no limit.
    pub icmp_msgs_per_sec: u32,
    /// When a new SYN replaces an old connection between the same endpoints.
    pub conn_reuse_mode: ConnReuse,
    /// Whether connections to a removed destination end at once. Otherwise their packets are dropped until they expire.
    pub expire_nodest_conn: bool,
    /// Whether a client's template is ignored while its destination is quiescent.
    pub expire_quiescent_template: bool,
    /// Whether UDP datagrams on connections with a removed destination are scheduled again even without
    /// `expire_nodest_conn`.
    pub udp_nodest_reschedule: bool,
    /// Whether any TCP packet except a reset may begin a connection.
    pub sloppy_tcp: bool,
    /// Whether any SCTP packet except an abort may begin a connection.
    pub sloppy_sctp: bool,
    /// Whether TCP states follow the defensive table.
    pub secure_tcp: bool,
    /// One packet out of this many that could begin a connection is dropped; 0 means none.
    pub drop_packet_rate: u32,
    /// Whether memory, or the room in the connection table, is short: the criterion for the automatic defences.
    pub memory_short: bool,
    /// Whether connections of little value are removed, some each second (`drop_entry`).
    pub drops_entries: bool,
    /// Whether a destination that sends packets without a client's request gets an ICMP error.
    pub nat_icmp_send: bool,
    /// Whether IPv4 replies whose source is the virtual address itself are forwarded.
    pub forward_shared: bool,
    /// The connections whose maximum segment size is lowered to the size that their path can carry.
    pub mss_clamp: MssClamp,
    /// Whether tunnels copy the don't-fragment bit of the inner packet, and refuse packets that are too big for them.
    pub pmtu_disc: bool,
    /// Whether marked packets without a destination are forwarded to their original address.
    pub cache_bypass: bool,
    /// Whether an ICMP error about a packet without a connection begins one, as the client's packet would.
    pub schedule_icmp: bool,
    /// Whether clients' packets go to the kernel (`backup_only`). Replies are still translated.
    pub requests_stay: bool,
}

/// The bits of `conn_reuse_mode`: 1 replaces closed connections, 2 also those that wait for a FIN that cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnReuse(pub u8);

impl ConnReuse {
    /// Whether connections in TIME_WAIT or CLOSE (SCTP: CLOSED) are replaced.
    pub fn closed(self) -> bool {
        self.0 != 0
    }

    /// Whether connections in FIN_WAIT whose replies are not seen are replaced.
    pub fn half_seen(self) -> bool {
        self.0 & 2 != 0
    }
}

impl Settings {
    /// The timeout of a connection after a packet in this state.
    pub fn timeout(&self, protocol: Protocol, state: u8) -> Duration {
        match protocol {
            Protocol::UDP => self.udp,
            Protocol::SCTP => SctpState::of(state).timeout(),
            _ => conn::tcp::timeout(TcpState::of(state), self.tcp_established, self.tcp_fin_wait),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(900),
            tcp_fin_wait: Duration::from_secs(120),
            udp: Duration::from_secs(300),
            icmp_msgs_per_sec: 1000,
            conn_reuse_mode: ConnReuse(1),
            expire_nodest_conn: false,
            expire_quiescent_template: false,
            udp_nodest_reschedule: true,
            sloppy_tcp: false,
            sloppy_sctp: false,
            secure_tcp: false,
            drop_packet_rate: 0,
            memory_short: false,
            drops_entries: false,
            nat_icmp_send: false,
            forward_shared: false,
            mss_clamp: MssClamp::Tunnels,
            pmtu_disc: true,
            cache_bypass: false,
            schedule_icmp: false,
            requests_stay: false,
        }
    }
}

/// The connections whose MSS option is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    /// None.
    Off,
    /// Tunnelled connections.
    Tunnels,
    /// All.
    All,
}

impl MssClamp {
    /// Whether the option of this packet is lowered. `method` is that of its connection.
    pub fn concerns(self, packet: &Packet, method: ForwardingMethod) -> bool {
        self.covers(method) && packet.tcp_flags.has(tcp::Flags::SYN)
    }

    /// Whether the option is lowered for connections with this method.
    pub fn covers(self, method: ForwardingMethod) -> bool {
        match self {
            Self::Off => false,
            Self::Tunnels => method == ForwardingMethod::Tunnel,
            Self::All => true,
        }
    }
}
