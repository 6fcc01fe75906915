//! The settings of IPVS: the section `[ipvs]` of xvs.toml and the keys of `xvs set`, named as the kernel's
//! `net.ipv4.vs.*`.
//!
//! Ranges and refusals are those of the kernel. Not here: the effect of settings in the data plane.

use serde::{Deserialize, Serialize};

use crate::config::command::CommandError;
use crate::config::load_feedback;
use crate::config::load_feedback::Feedback;

/// The section `[ipvs]` of xvs.toml, and the settings of `xvs set`. Defaults are the kernel's where the kernel has the
/// key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ipvs {
    /// The largest number of ICMP errors that each worker sends per second; 0: no limit. Default: 1,000.
    pub icmp_msgs_per_sec: u32,
    /// When a SYN replaces an old connection between the same endpoints: 0 never; 1 if that is in TIME_WAIT or CLOSE; 2
    /// also if it is in FIN_WAIT and its replies are not seen. Default: 1.
    pub conn_reuse_mode: u8,
    /// 1: connections of a removed real server end within half a second. Default: 0.
    pub expire_nodest_conn: Switch,
    /// 1: the next connection of a persistent client whose real server is quiescent goes to another one. Default: 0.
    pub expire_quiescent_template: Switch,
    /// 1: the next UDP datagram to a removed real server is scheduled to another one. Default: 1. The kernel has no
    /// such key and drops the datagram.
    pub udp_nodest_reschedule: Switch,
    /// 1: any TCP packet except a reset may start a connection. Default: 0.
    pub sloppy_tcp: Switch,
    /// 1: any SCTP packet except an abort may start a connection. Default: 0.
    pub sloppy_sctp: Switch,
    /// Defence against half-open connections: a handshake counts only when packets of both ends were seen. Default: 0.
    pub secure_tcp: Defence,
    /// Defence: drops some of the packets that would start a connection. Default: 0.
    pub drop_packet: Defence,
    /// Defence: each second examines a random part of the table, and ends half-open and little-used connections.
    /// Default: 0.
    pub drop_entry: Defence,
    /// With `drop_packet` 3, one of this many packets is dropped. Default: 10.
    pub am_droprate: u32,
    /// Number of available memory pages below which a defence of 1 or 2 is on. Default: 1,024.
    pub amemthresh: u32,
    /// 1: packets of a mark's service without an available real server go to their original destination. Default: 0.
    pub cache_bypass: Switch,
    /// 1: an ICMP error about an unknown connection is scheduled, so that directors with a hash scheduler send it to
    /// the same real server. Default: 0.
    pub schedule_icmp: Switch,
    /// Seconds after which `lblc` forgets an unused address; checked every half hour. Default: 86,400.
    pub lblc_expiration: u32,
    /// The same for `lblcr`, which also removes a real server from a set that has not changed for this time. Default:
    /// 86,400.
    pub lblcr_expiration: u32,
    /// 1: a real server behind NAT that sends unsolicited packets gets an ICMP error. Default: 0.
    pub nat_icmp_send: Switch,
    /// 1: the outer packet of a tunnel forbids fragmentation if the inner one does, and the sender of a packet that is
    /// too large gets an ICMP error. 0: the outer packet never forbids it and is fragmented. Default: 1.
    pub pmtu_disc: Switch,
    /// `off`, `tunnels` or `all`: the connections whose maximum segment size is lowered in SYN and SYN+ACK to the MTU
    /// of their route. Default: `tunnels`. The kernel has no such key; its netfilter rules can do the same.
    pub mss_clamp: MssClamp,
    /// 1: while this director is a backup for connection sync, it passes clients' packets to its kernel, so that two
    /// directors that are each other's real servers do not loop packets. Default: 0.
    pub backup_only: Switch,
    /// 1: packets that came out of a tunnel are not scheduled again. Without effect in xvs, which never schedules them:
    /// they come from an interface without AF_XDP. Default: 0.
    pub ignore_tunneled: Switch,
    /// The master daemon announces a connection at the packet of its client with the first number, and then once in
    /// the second number of packets. Default: "3 50".
    pub sync_threshold: SyncThreshold,
    /// Seconds between two announcements of a connection; 0: packets alone are counted. Default: 0.
    pub sync_refresh_period: u32,
    /// How often an announcement is repeated before `sync_refresh_period` is over: 0 to 3. Default: 0.
    pub sync_retries: SyncRetries,
    /// Messages that wait to be sent, at most. Default: 4,096.
    pub sync_qlen_max: u32,
    /// Bytes of the socket buffer of a daemon; 0: the system's default. Read when a daemon starts. Default: 0.
    pub sync_sock_size: u32,
    /// UDP ports of a daemon, from its first on: a power of 2, of which at most 64 are used. Read when a daemon starts.
    /// Default: 1.
    pub sync_ports: SyncPorts,
    /// 1: connections with a persistence template are not announced, only the template is. Default: 0.
    pub sync_persist_mode: Switch,
    /// The version of messages that the master daemon sends: 0 or 1. Default: 1.
    pub sync_version: Switch,
}

/// When the master daemon announces a connection, by the number of a packet: the kernel's `sync_threshold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(try_from = "String", rename_all = "lowercase")]
pub enum MssClamp {
    /// None.
    Off,
    /// Those through a tunnel.
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

impl Default for Ipvs {
    fn default() -> Self {
        let off = Switch(false);
        Self {
            icmp_msgs_per_sec: 1000,
            conn_reuse_mode: 1,
            expire_nodest_conn: off,
            expire_quiescent_template: off,
            udp_nodest_reschedule: Switch(true),
            sloppy_tcp: off,
            sloppy_sctp: off,
            secure_tcp: Defence(0),
            drop_packet: Defence(0),
            drop_entry: Defence(0),
            am_droprate: 10,
            amemthresh: 1024,
            cache_bypass: off,
            schedule_icmp: off,
            lblc_expiration: 86_400,
            lblcr_expiration: 86_400,
            nat_icmp_send: off,
            mss_clamp: MssClamp::Tunnels,
            pmtu_disc: Switch(true),
            backup_only: off,
            ignore_tunneled: off,
            sync_threshold: SyncThreshold { first: 3, period: 50 },
            sync_refresh_period: 0,
            sync_retries: SyncRetries(0),
            sync_qlen_max: 4096,
            sync_sock_size: 0,
            sync_ports: SyncPorts(1),
            sync_persist_mode: off,
            sync_version: Switch(true),
        }
    }
}

impl Ipvs {
    /// The defaults, without the features that the kernel's IPVS does not have.
    pub fn kernel_defaults() -> Self {
        Self { mss_clamp: MssClamp::Off, udp_nodest_reschedule: Switch(false), ..Self::default() }
    }

    /// Sets one setting, by name.
    ///
    /// # Errors
    /// [`CommandError::UnknownSetting`] or [`CommandError::BadSetting`]; nothing has changed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), CommandError> {
        let bad = |range: &str| CommandError::BadSetting {
            key: key.to_owned(),
            value: value.to_owned(),
            range: range.to_owned(),
        };
        let number = || value.parse().map_err(|_| bad("0 to 4294967295"));
        let small = || value.parse::<u8>().ok();
        let switch = || small().and_then(|value| Switch::try_from(value).ok()).ok_or_else(|| bad("0 or 1"));
        let defence = || small().and_then(|value| Defence::try_from(value).ok()).ok_or_else(|| bad("0 to 3"));
        match key {
            "icmp_msgs_per_sec" => self.icmp_msgs_per_sec = number()?,
            "conn_reuse_mode" => self.conn_reuse_mode = small().ok_or_else(|| bad("0 to 255"))?,
            "expire_nodest_conn" => self.expire_nodest_conn = switch()?,
            "expire_quiescent_template" => self.expire_quiescent_template = switch()?,
            "udp_nodest_reschedule" => self.udp_nodest_reschedule = switch()?,
            "sloppy_tcp" => self.sloppy_tcp = switch()?,
            "sloppy_sctp" => self.sloppy_sctp = switch()?,
            "secure_tcp" => self.secure_tcp = defence()?,
            "drop_packet" => self.drop_packet = defence()?,
            "drop_entry" => self.drop_entry = defence()?,
            "am_droprate" => self.am_droprate = number()?,
            "amemthresh" => self.amemthresh = number()?,
            "cache_bypass" => self.cache_bypass = switch()?,
            "lblc_expiration" => self.lblc_expiration = number()?,
            "lblcr_expiration" => self.lblcr_expiration = number()?,
            "nat_icmp_send" => self.nat_icmp_send = switch()?,
            "mss_clamp" => {
                let word = MssClamp::try_from(value.to_owned());
                self.mss_clamp = word.map_err(|_| bad("off, tunnels or all"))?;
            }
            "schedule_icmp" => self.schedule_icmp = switch()?,
            "pmtu_disc" => self.pmtu_disc = switch()?,
            "backup_only" => self.backup_only = switch()?,
            "ignore_tunneled" => self.ignore_tunneled = switch()?,
            "sync_threshold" => {
                let threshold = SyncThreshold::try_from(value.to_owned());
                self.sync_threshold = threshold.map_err(|_| bad(SYNC_THRESHOLD))?;
            }
            "sync_refresh_period" => self.sync_refresh_period = number()?,
            "sync_retries" => {
                let retries = small().and_then(|value| SyncRetries::try_from(value).ok());
                self.sync_retries = retries.ok_or_else(|| bad("0 to 3"))?;
            }
            "sync_qlen_max" => self.sync_qlen_max = number()?,
            "sync_sock_size" => self.sync_sock_size = number()?,
            "sync_ports" => {
                let ports = value.parse().ok().and_then(|value: u32| SyncPorts::try_from(value).ok());
                self.sync_ports = ports.ok_or_else(|| bad("a power of 2"))?;
            }
            "sync_persist_mode" => self.sync_persist_mode = switch()?,
            "sync_version" => self.sync_version = switch()?,
            _ => {
                let known = KEYS.map(str::to_owned).to_vec();
                return Err(CommandError::UnknownSetting { key: key.to_owned(), known });
            }
        }
        Ok(())
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

/// The names of the settings of [`Ipvs::set`].
const KEYS: [&str; 29] = [
    "am_droprate",
    "amemthresh",
    "backup_only",
    "cache_bypass",
    "conn_reuse_mode",
    "drop_entry",
    "drop_packet",
    "expire_nodest_conn",
    "expire_quiescent_template",
    "icmp_msgs_per_sec",
    "ignore_tunneled",
    "lblc_expiration",
    "lblcr_expiration",
    "mss_clamp",
    "nat_icmp_send",
    "pmtu_disc",
    "schedule_icmp",
    "secure_tcp",
    "sloppy_sctp",
    "sloppy_tcp",
    "sync_persist_mode",
    "sync_ports",
    "sync_qlen_max",
    "sync_refresh_period",
    "sync_retries",
    "sync_sock_size",
    "sync_threshold",
    "sync_version",
    "udp_nodest_reschedule",
];

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
        let unknown = ipvs.set("nosuch", "x").unwrap_err().to_string();
        for key in KEYS {
            assert!(unknown.contains(key), "{key}: {unknown}");
            let value = match key {
                "mss_clamp" => "all",
                "sync_threshold" => "1 3",
                _ => "1",
            };
            ipvs.set(key, value).unwrap();
        }
        let bad = ipvs.set("drop_entry", "4").unwrap_err().to_string();
        assert_eq!(bad, "drop_entry cannot be \"4\"; it takes 0 to 3");
    }
}
