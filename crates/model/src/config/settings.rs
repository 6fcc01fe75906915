//! The IPVS settings: the section `[ipvs]` of xvs.toml and the keys of `xvs set`, named as the kernel's
//! `net.ipv4.vs.*`.
//!
//! Ranges and refusals are as in the kernel.

use serde::{Deserialize, Serialize};

use crate::config::load_feedback;
use crate::config::load_feedback::Feedback;
use crate::config::refusal::CommandError;
use crate::config::setting_table::{settings, values};

settings! {
    /// The section `[ipvs]` of xvs.toml, and the settings of `xvs set`. Defaults are the kernel's where the kernel has
    /// the key.
    #[derive(Copy)]
    Ipvs with prefix "";

    /// The largest number of ICMP errors that each worker sends per second; 0: no limit.
    icmp_msgs_per_sec: u32 = 1000;
    /// When a SYN replaces an old connection between the same endpoints: 0 never; 1 if that is in TIME_WAIT or CLOSE;
    /// 2 also if it is in FIN_WAIT and its replies are not seen.
    conn_reuse_mode: u8 = 1;
    /// 1: connections of a removed real server end after 20 ms, unless it is back by then.
    expire_nodest_conn: Switch = Switch(false);
    /// 1: the next connection of a persistent client whose real server is quiescent goes to another one.
    expire_quiescent_template: Switch = Switch(false);
    /// 1: the next UDP datagram to a removed real server is scheduled to another one. The kernel has no such key and
    /// drops the datagram.
    udp_nodest_reschedule: Switch = Switch(true);
    /// 1: any TCP packet except a reset may start a connection.
    sloppy_tcp: Switch = Switch(false);
    /// 1: any SCTP packet except an abort may start a connection.
    sloppy_sctp: Switch = Switch(false);
    /// Defence against half-open connections: a handshake counts only when packets of both ends were seen.
    secure_tcp: Defence = Defence(0);
    /// Defence: drops some of the packets that would start a connection.
    drop_packet: Defence = Defence(0);
    /// Defence: each second examines a random part of the table, and ends half-open and little-used connections.
    drop_entry: Defence = Defence(0);
    /// With `drop_packet` 3, one of this many packets is dropped.
    am_droprate: u32 = 10;
    /// Number of available memory pages below which a defence of 1 or 2 is on.
    amemthresh: u32 = 1024;
    /// 1: packets of a mark's service without an available real server go to their original destination.
    cache_bypass: Switch = Switch(false);
    /// 1: an ICMP error about an unknown connection is scheduled, so that directors with a hash scheduler send it to
    /// the same real server.
    schedule_icmp: Switch = Switch(false);
    /// Seconds after which `lblc` forgets an unused address; checked every half hour.
    lblc_expiration: u32 = 86_400;
    /// The expiry of `lblcr`, which also removes a real server from a set that has not changed for this time.
    lblcr_expiration: u32 = 86_400;
    /// 1: a real server behind NAT that sends unsolicited packets gets an ICMP error.
    nat_icmp_send: Switch = Switch(false);
    /// 1: IPv4 replies of direct routing and tunnels that pass this director are forwarded. 0: they go to the kernel,
    /// which drops them if it has the virtual address. The kernel has no such key; a patch of others gives it one.
    forward_shared: Switch = Switch(false);
    /// 1: the outer packet of a tunnel forbids fragmentation if the inner one does, and the sender of a packet that
    /// is too large gets an ICMP error. 0: the outer packet never forbids it and is fragmented.
    pmtu_disc: Switch = Switch(true);
    /// `off`, `tunnels` or `all`: the connections whose maximum segment size is lowered in SYN and SYN+ACK to the MTU
    /// of their route. The kernel has no such key; its netfilter rules can do the same.
    mss_clamp: MssClamp = MssClamp::Tunnels;
    /// 1: while this director is a backup for connection sync, it passes clients' packets to its kernel, so that two
    /// directors that are each other's real servers do not loop packets.
    backup_only: Switch = Switch(false);
    /// 1: packets that came out of a tunnel are not scheduled again. Without effect in xvs, which never schedules
    /// them: they come from an interface without AF_XDP.
    ignore_tunneled: Switch = Switch(false);
    /// The master daemon announces a connection at the packet of its client with the first number, and then once in
    /// the second number of packets.
    sync_threshold: SyncThreshold = SyncThreshold { first: 3, period: 50 };
    /// Seconds between two announcements of a connection; 0: packets alone are counted.
    sync_refresh_period: u32 = 0;
    /// How often an announcement is repeated before `sync_refresh_period` is over: 0 to 3.
    sync_retries: SyncRetries = SyncRetries(0);
    /// Messages that wait to be sent, at most.
    sync_qlen_max: u32 = 4096;
    /// Bytes of the socket buffer of a daemon; 0: the system's default. Read when a daemon starts.
    sync_sock_size: u32 = 0;
    /// UDP ports of a daemon, from its first on: a power of 2, of which at most 64 are used. Read when a daemon
    /// starts.
    sync_ports: SyncPorts = SyncPorts(1);
    /// 1: connections with a persistence template are not announced, only the template is.
    sync_persist_mode: Switch = Switch(false);
    /// The version of messages that the master daemon sends: 0 or 1.
    sync_version: Switch = Switch(true);
}

values! {
    u32: u32, "0 to 4294967295";
    u8: u8, "0 to 255";
    Switch: u8, "0 or 1";
    Defence: u8, "0 to 3";
    SyncRetries: u8, "0 to 3";
    SyncPorts: u32, "a power of 2";
    SyncThreshold: String, SYNC_THRESHOLD;
    MssClamp: String, "off, tunnels or all";
}

/// When the master daemon announces a connection, by the number of a packet: the kernel's `sync_threshold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct SyncThreshold {
    /// The first packet that does.
    pub first: u32,
    /// The number of packets between two that do; 0: only the first does.
    pub period: u32,
}

impl TryFrom<String> for SyncThreshold {
    type Error = &'static str;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        let numbers: Option<Vec<u32>> = value.split_whitespace().map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[first, period]) if period == 0 || first < period => Ok(Self { first, period }),
            _ => Err(SYNC_THRESHOLD),
        }
    }
}

impl From<SyncThreshold> for String {
    fn from(SyncThreshold { first, period }: SyncThreshold) -> Self {
        format!("{first} {period}")
    }
}

const SYNC_THRESHOLD: &str = "two numbers, the first below the second, or the second 0";

/// The number of repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "u8", into = "u8")]
pub struct SyncRetries(pub u8);

impl TryFrom<u8> for SyncRetries {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if value <= 3 { Ok(Self(value)) } else { Err("0 to 3 is needed") }
    }
}

impl From<SyncRetries> for u8 {
    fn from(retries: SyncRetries) -> Self {
        retries.0
    }
}

/// The number of a daemon's ports as it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "u32", into = "u32")]
pub struct SyncPorts(u32);

impl SyncPorts {
    /// The number of ports that are used.
    pub fn used(self) -> u16 {
        self.0.min(64) as u16
    }
}

impl TryFrom<u32> for SyncPorts {
    type Error = &'static str;

    fn try_from(value: u32) -> Result<Self, Self::Error> {
        if value.is_power_of_two() { Ok(Self(value)) } else { Err("a power of 2 is needed") }
    }
}

impl From<SyncPorts> for u32 {
    fn from(ports: SyncPorts) -> Self {
        ports.0
    }
}

/// The connections whose maximum segment size is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum MssClamp {
    /// None.
    Off,
    /// TCP connections through a tunnel.
    Tunnels,
    /// All.
    All,
}

impl TryFrom<String> for MssClamp {
    type Error = &'static str;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        match value.as_str() {
            "off" => Ok(Self::Off),
            "tunnels" => Ok(Self::Tunnels),
            "all" => Ok(Self::All),
            _ => Err("off, tunnels or all is needed"),
        }
    }
}

/// Sets one setting of `xvs set`, by name.
///
/// # Errors
/// [`CommandError::UnknownSetting`] or [`CommandError::BadSetting`]; nothing has changed.
pub fn set(ipvs: &mut Ipvs, feedback: &mut Feedback, key: &str, value: &str) -> Result<(), CommandError> {
    match key.strip_prefix(load_feedback::PREFIX) {
        Some(key) => feedback.set(key, value),
        None => ipvs.set(key, value).map_err(|error| match error {
            CommandError::UnknownSetting { key, mut known } => {
                known.extend(Feedback::keys());
                CommandError::UnknownSetting { key, known }
            }
            other => other,
        }),
    }
}

/// A setting of 0 (off) or 1 (on).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "u8", into = "u8")]
pub struct Switch(pub bool);

impl TryFrom<u8> for Switch {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if value <= 1 { Ok(Self(value == 1)) } else { Err("0 or 1 is needed") }
    }
}

/// The mode of a defence: 0 off, 3 on; 1 and 2 automatic, on while memory is short. The director sets 1 or 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "u8", into = "u8")]
pub struct Defence(u8);

impl TryFrom<u8> for Defence {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if value <= 3 { Ok(Self(value)) } else { Err("0, 1, 2 or 3 is needed") }
    }
}

impl From<Switch> for u8 {
    fn from(switch: Switch) -> Self {
        switch.0.into()
    }
}

impl From<Defence> for u8 {
    fn from(defence: Defence) -> Self {
        defence.0
    }
}

impl Defence {
    /// Whether it is on with this amount of memory.
    pub fn is_on(self, memory: Memory) -> bool {
        self.0 == 3 || self.is_automatic() && matches!(memory, Memory::Short { .. })
    }

    /// Whether it depends on available memory.
    pub fn is_automatic(self) -> bool {
        matches!(self.0, 1 | 2)
    }
}

/// The memory that the machine has available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Enough.
    Plenty,
    /// Below `amemthresh`.
    Short {
        /// Available pages.
        free_pages: u32,
    },
}

impl Ipvs {
    /// The defaults, without the features that the kernel's IPVS does not have.
    pub fn kernel_defaults() -> Self {
        Self { mss_clamp: MssClamp::Off, udp_nodest_reschedule: Switch(false), ..Self::default() }
    }

    /// Whether any defence depends on available memory.
    pub fn is_automatic(&self) -> bool {
        [self.secure_tcp, self.drop_packet, self.drop_entry].iter().any(|defence| defence.is_automatic())
    }

    /// Sets each automatic defence from the available memory, in pages: to 2 (on) below `amemthresh`, else to 1 (off).
    /// Source: ipvs-behaviour, section 3.7.
    #[must_use]
    pub fn observe(&mut self, available_pages: u32) -> Memory {
        let short = available_pages < self.amemthresh;
        let defences = [&mut self.secure_tcp, &mut self.drop_packet, &mut self.drop_entry];
        for defence in defences.into_iter().filter(|defence| defence.is_automatic()) {
            defence.0 = if short { 2 } else { 1 };
        }
        if short { Memory::Short { free_pages: available_pages } } else { Memory::Plenty }
    }

    /// Whether `drop_entry` is on with this amount of memory.
    pub fn drops_entries(&self, memory: Memory) -> bool {
        self.drop_entry.is_on(memory)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::settings::*;

    #[test]
    fn an_automatic_defence_becomes_two_below_the_threshold_and_one_above_it_and_others_stay() {
        let mut ipvs = Ipvs::default();
        for (key, value) in [("drop_entry", "1"), ("secure_tcp", "2"), ("drop_packet", "3")] {
            ipvs.set(key, value).unwrap();
        }
        assert_eq!(ipvs.observe(1023), Memory::Short { free_pages: 1023 });
        assert_eq!(
            (ipvs.drop_entry, ipvs.secure_tcp, ipvs.drop_packet),
            (Defence(2), Defence(2), Defence(3))
        );
        assert!(ipvs.drops_entries(Memory::Short { free_pages: 1023 }));
        assert_eq!(ipvs.observe(1024), Memory::Plenty);
        assert_eq!(
            (ipvs.drop_entry, ipvs.secure_tcp, ipvs.drop_packet),
            (Defence(1), Defence(1), Defence(3))
        );
    }

    #[test]
    fn values_that_the_kernel_refuses_are_refused_and_change_nothing() {
        let mut ipvs = Ipvs::default();
        for (key, value) in [
            ("drop_entry", "4"),
            ("secure_tcp", "-1"),
            ("sloppy_tcp", "2"),
            ("am_droprate", "x"),
            ("sync_threshold", "3"),
            ("sync_threshold", "3 3"),
            ("sync_threshold", "3 -1"),
            ("sync_threshold", "1 2 3"),
            ("sync_ports", "3"),
            ("sync_ports", "0"),
            ("sync_retries", "4"),
            ("sync_version", "2"),
        ] {
            assert!(matches!(ipvs.set(key, value), Err(CommandError::BadSetting { .. })), "{key} {value}");
        }
        assert_eq!(ipvs, Ipvs::default());
    }

    #[test]
    fn the_error_of_an_unknown_setting_lists_all_and_that_of_a_bad_value_names_the_range() {
        let mut ipvs = Ipvs::default();
        let similar = ipvs.set("conn_reuse_mod", "1").unwrap_err().to_string();
        assert_eq!(similar, "no setting \"conn_reuse_mod\"; did you mean conn_reuse_mode?");
        let refused = ipvs.set("snat_reroute", "0").unwrap_err().to_string();
        assert!(refused.starts_with("no setting \"snat_reroute\"; it is always 1 in xvs"), "{refused}");
        let unknown = ipvs.set("nosuch", "x").unwrap_err().to_string();
        for key in Ipvs::keys() {
            assert!(unknown.contains(&key), "{key}: {unknown}");
            let value = match key.as_str() {
                "mss_clamp" => "all",
                "sync_threshold" => "1 3",
                _ => "1",
            };
            ipvs.set(&key, value).unwrap();
        }
        let bad = ipvs.set("drop_entry", "4").unwrap_err().to_string();
        assert_eq!(bad, "drop_entry cannot be \"4\"; it takes 0 to 3");
    }
}
