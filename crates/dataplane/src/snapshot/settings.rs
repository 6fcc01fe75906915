//! Timeouts and settings of the data plane.

use std::time::Duration;

use xvs_proto::{Packet, tcp};
use xvs_sched::ForwardingMethod;

/// What `xvsadm --set` and the `[ipvs]` keys of `xvs.toml` change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Timeout of an established TCP connection.
    pub tcp_established: Duration,
    /// Timeout of a TCP connection that one end has finished.
    pub tcp_fin_wait: Duration,
    /// Timeout of a UDP connection.
    pub udp: Duration,
    /// How many ICMP errors a worker sends in a second; 0 means as many as there are.
    pub icmp_msgs_per_sec: u32,
    /// When a new SYN takes the place of an old connection between the same endpoints.
    pub conn_reuse_mode: ConnReuse,
    /// Whether connections of a removed destination end at once, instead of being dropped until they expire.
    pub expire_nodest_conn: bool,
    /// Whether a client's template is of no use while its destination is quiescent.
    pub expire_quiescent_template: bool,
    /// Whether UDP datagrams of a removed destination are scheduled anew even without `expire_nodest_conn`.
    pub udp_nodest_reschedule: bool,
    /// Whether any TCP packet but a reset may begin a connection.
    pub sloppy_tcp: bool,
    /// Whether any SCTP packet but an abort may begin a connection.
    pub sloppy_sctp: bool,
    /// Whether half-open TCP connections are judged by the defensive table.
    pub secure_tcp: bool,
    /// Of so many packets that could begin a connection one is dropped; 0: none.
    pub drop_packet_rate: u32,
    /// Whether connections that look worthless are ended, some each second.
    pub drops_entries: bool,
    /// Whether a destination that speaks without being asked is told so.
    pub nat_icmp_send: bool,
    /// Of which connections the maximum segment size is lowered to what their way takes.
    pub mss_clamp: MssClamp,
    /// Whether tunnels forbid fragmentation as the packet inside does, and refuse what is too big for them.
    pub pmtu_disc: bool,
    /// Whether marked packets that no destination takes go where they were sent to.
    pub cache_bypass: bool,
    /// Whether an ICMP error about a packet of no connection begins one, as if it were the client's packet.
    pub schedule_icmp: bool,
    /// Whether what clients send is left to the kernel (`backup_only`); replies are translated all the same.
    pub requests_stay: bool,
}

/// The bits of `conn_reuse_mode`: 1 reuses what has closed, 2 also what waits for a FIN that cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnReuse(pub u8);

impl ConnReuse {
    /// Whether connections in TIME_WAIT or CLOSE (SCTP: CLOSED) give way.
    pub fn closed(self) -> bool {
        self.0 != 0
    }

    /// Whether connections in FIN_WAIT whose replies are not seen give way.
    pub fn half_seen(self) -> bool {
        self.0 & 2 != 0
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
            drops_entries: false,
            nat_icmp_send: false,
            mss_clamp: MssClamp::Tunnels,
            pmtu_disc: true,
            cache_bypass: false,
            schedule_icmp: false,
            requests_stay: false,
        }
    }
}

/// Of which connections the option is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    /// None.
    Off,
    /// Those that are tunnelled.
    Tunnels,
    /// All.
    All,
}

impl MssClamp {
    /// Whether a packet of a connection by this method is one of those whose option is lowered.
    pub fn concerns(self, packet: &Packet, method: ForwardingMethod) -> bool {
        let covered = match self {
            Self::Off => false,
            Self::Tunnels => method == ForwardingMethod::Tunnel,
            Self::All => true,
        };
        covered && packet.tcp_flags.has(tcp::Flags::SYN)
    }
}
