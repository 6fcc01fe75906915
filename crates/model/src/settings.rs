//! The settings of IPVS: the section `[ipvs]` of xvs.toml and the keys of `xvs set`, named as the kernel's
//! `net.ipv4.vs.*`.
//!
//! Ranges and refusals are those of the kernel. Not here: what the data plane makes of them.

use serde::Deserialize;

use crate::command::CommandError;
use crate::load_feedback;
use crate::load_feedback::Feedback;

/// The section `[ipvs]`, and what is set live. Each key's default is the kernel's where the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ipvs {
    /// How many ICMP errors each worker sends in a second; 0: no limit. Default: 1,000.
    pub icmp_msgs_per_sec: u32,
    /// When a new SYN takes the place of an old connection: 0 never, 1 of one in TIME_WAIT or CLOSE, 2 also in FIN_WAIT
    /// whose replies are not seen. Default: 1.
    pub conn_reuse_mode: u8,
    /// 1: connections of a removed real server end at once. Default: 0.
    pub expire_nodest_conn: Switch,
    /// 1: a persistent client of a quiescent real server goes to another one with its next connection. Default: 0.
    pub expire_quiescent_template: Switch,
    /// 1: UDP of a removed real server goes to another one at its next datagram. Default: 1; the kernel has no such
    /// key and drops.
    pub udp_nodest_reschedule: Switch,
    /// 1: any TCP packet but a reset may begin a connection. Default: 0.
    pub sloppy_tcp: Switch,
    /// 1: any SCTP packet but an abort may begin a connection. Default: 0.
    pub sloppy_sctp: Switch,
    /// Defence against half-open connections: the table of states that wants to see both ends. Default: 0.
    pub secure_tcp: Defence,
    /// Defence: drops some packets that could begin a connection. Default: 0.
    pub drop_packet: Defence,
    /// Defence: ends connections that look worthless, some at a time. Default: 0.
    pub drop_entry: Defence,
    /// Of how many packets `drop_packet` 3 drops one. Default: 10.
    pub am_droprate: u32,
    /// Below how many free pages of memory a defence of 1 or 2 is on. Default: 1,024.
    pub amemthresh: u32,
    /// 1: marked packets that no real server takes go where they were sent to. Default: 0.
    pub cache_bypass: Switch,
    /// 1: an ICMP error about a packet of no connection begins one, so that directors that choose by a hash agree on
    /// whom it goes to. Default: 0.
    pub schedule_icmp: Switch,
    /// After how many seconds `lblc` forgets an address that nobody asked for, looked at every half hour. Default:
    /// 86,400.
    pub lblc_expiration: u32,
    /// The same for `lblcr`, which also takes a real server from a set that has not changed for so long. Default:
    /// 86,400.
    pub lblcr_expiration: u32,
    /// 1: a real server that sends without being asked gets an ICMP error. Default: 0.
    pub nat_icmp_send: Switch,
    /// 1: tunnels forbid fragmentation as the packet inside does, and the sender of one that is too big for them is
    /// told. 0: they never do, and are fragmented. Default: 1.
    pub pmtu_disc: Switch,
    /// `off`, `tunnels` or `all`: the connections whose SYN and SYN+ACK promise no larger segments than their way
    /// takes. Default: `tunnels`; the kernel has no such key and leaves that to its rules.
    pub mss_clamp: MssClamp,
    /// 1: while this director is a backup for connection sync, clients' packets stay with its kernel, so that two
    /// directors that are each other's real servers don't send packets in a circle. Default: 0.
    pub backup_only: Switch,
    /// 1: what came out of a tunnel is not balanced again. xvs never does that, whatever this says: such packets come
    /// out of an interface that has no AF_XDP. Default: 0.
    pub ignore_tunneled: Switch,
}

/// Of which connections the maximum segment size is lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum MssClamp {
    /// Of none.
    Off,
    /// Of those through a tunnel.
    Tunnels,
    /// Of all.
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

/// Sets one of all that can be set live, by name.
///
/// # Errors
/// [`CommandError::UnknownSetting`] or [`CommandError::BadSetting`]; then nothing has changed.
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

/// 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub struct Switch(pub bool);

impl TryFrom<u8> for Switch {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if value <= 1 { Ok(Self(value == 1)) } else { Err("0 or 1 is needed") }
    }
}

/// 0 off, 1 and 2 on while memory is short (the director sets which of the two), 3 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub struct Defence(u8);

impl TryFrom<u8> for Defence {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if value <= 3 { Ok(Self(value)) } else { Err("0, 1, 2 or 3 is needed") }
    }
}

impl Defence {
    /// Whether it is on when memory is short as said.
    pub fn is_on(self, memory: Memory) -> bool {
        self.0 == 3 || self.is_automatic() && matches!(memory, Memory::Short { .. })
    }

    /// Whether it follows how short memory is.
    pub fn is_automatic(self) -> bool {
        matches!(self.0, 1 | 2)
    }
}

/// How much memory the machine has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Enough.
    Plenty,
    /// Below `amemthresh`.
    Short {
        /// Pages that are free.
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
        }
    }
}

impl Ipvs {
    /// The defaults without what the kernel's IPVS does not do to a packet.
    pub fn kernel_defaults() -> Self {
        Self { mss_clamp: MssClamp::Off, udp_nodest_reschedule: Switch(false), ..Self::default() }
    }

    /// Sets one by name.
    ///
    /// # Errors
    /// [`CommandError::UnknownSetting`] or [`CommandError::BadSetting`]; then nothing has changed.
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
            _ => {
                let known = KEYS.map(str::to_owned).to_vec();
                return Err(CommandError::UnknownSetting { key: key.to_owned(), known });
            }
        }
        Ok(())
    }

    /// Whether how much memory is left makes a difference.
    pub fn is_automatic(&self) -> bool {
        [self.secure_tcp, self.drop_packet, self.drop_entry].iter().any(|defence| defence.is_automatic())
    }

    /// Takes in how much memory is available, in pages: an automatic defence becomes 2 and is on while there is less
    /// than `amemthresh`, else 1. Source: ipvs-behaviour, section 3.7.
    #[must_use]
    pub fn observe(&mut self, available_pages: u32) -> Memory {
        let short = available_pages < self.amemthresh;
        let defences = [&mut self.secure_tcp, &mut self.drop_packet, &mut self.drop_entry];
        for defence in defences.into_iter().filter(|defence| defence.is_automatic()) {
            defence.0 = if short { 2 } else { 1 };
        }
        if short { Memory::Short { free_pages: available_pages } } else { Memory::Plenty }
    }

    /// Whether connections that look worthless are to be ended.
    pub fn drops_entries(&self, memory: Memory) -> bool {
        self.drop_entry.is_on(memory)
    }
}

/// What [`Ipvs::set`] knows.
const KEYS: [&str; 21] = [
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
    "udp_nodest_reschedule",
];

#[cfg(test)]
mod tests {

    use super::*;

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
    fn what_the_kernel_refuses_is_refused_and_changes_nothing() {
        let mut ipvs = Ipvs::default();
        for (key, value) in
            [("drop_entry", "4"), ("secure_tcp", "-1"), ("sloppy_tcp", "2"), ("am_droprate", "x")]
        {
            assert!(matches!(ipvs.set(key, value), Err(CommandError::BadSetting { .. })), "{key} {value}");
        }
        assert_eq!(ipvs, Ipvs::default());
    }

    #[test]
    fn an_unknown_setting_lists_those_there_are_and_a_bad_value_the_range() {
        let mut ipvs = Ipvs::default();
        let unknown = ipvs.set("nosuch", "x").unwrap_err().to_string();
        for key in KEYS {
            assert!(unknown.contains(key), "{key}: {unknown}");
            ipvs.set(key, if key == "mss_clamp" { "all" } else { "1" }).unwrap();
        }
        let bad = ipvs.set("drop_entry", "4").unwrap_err().to_string();
        assert_eq!(bad, "drop_entry cannot be \"4\"; it takes 0 to 3");
    }
}
