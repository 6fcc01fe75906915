//! Settings of `xvs set KEY VALUE` and of `[ipvs]` in `xvs.toml`: the kernel's `net.ipv4.vs.*` under their names.
//!
//! [`Ipvs`] holds the values that were set. `in_force` computes the values that workers use; the defences' values also
//! depend on the machine's free memory. Ranges and refusals are as in the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use xvs_dataplane::snapshot::{ConnReuse, MssClamp, Settings};
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::load_feedback::Feedback;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::settings;
use xvs_model::config::settings::{Ipvs, Memory};
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::Rule;
use xvs_model::report::setting::{Setting, Source, flattened};
use xvs_sched::scheduler::Tuning;

/// The settings as they were set, and the memory left.
pub(super) struct ActiveSettings {
    /// The settings of IPVS.
    pub(super) ipvs: Ipvs,
    /// How weights follow load reports.
    pub(super) feedback: Feedback,
    memory: Memory,
    /// All settings of xvs.toml as they were at the start.
    start: Vec<Setting>,
    /// The sources of the settings that were set since the start, by their keys.
    changed: BTreeMap<String, Source>,
    /// The settings in force, for reports; `None`: a setting has changed since the last report.
    list: Option<Arc<[Setting]>>,
}

impl ActiveSettings {
    /// These settings, with plenty of memory.
    pub(super) fn new(ipvs: Ipvs, feedback: Feedback) -> Self {
        Self {
            ipvs,
            feedback,
            memory: Memory::Plenty,
            start: Vec::new(),
            changed: BTreeMap::new(),
            list: None,
        }
    }

    /// Sets one setting by its name, from this source.
    ///
    /// # Errors
    /// The errors of [`xvs_model::config::settings::set`]; then nothing has changed.
    pub(super) fn set(&mut self, key: &str, value: &str, source: Source) -> Result<(), CommandError> {
        settings::set(&mut self.ipvs, &mut self.feedback, key, value)?;
        self.changed.insert(key.to_owned(), source);
        self.list = None;
        Ok(())
    }

    /// Forgets that `xvs set` has set this; returns whether it had.
    pub(super) fn unset(&mut self, key: &str) -> bool {
        self.list = None;
        self.changed.get(key) == Some(&Source::XvsSet) && self.changed.remove(key).is_some()
    }

    /// Replaces the settings of the start.
    pub(super) fn set_start(&mut self, start: Vec<Setting>) {
        self.start = start;
        self.list = None;
    }

    /// Notes the source of the timeouts that a command sets.
    pub(super) fn note_timeouts(&mut self, command: &Command, source: Source) {
        let Command::Add(Rule::Timeouts(timeouts)) = command else { return };
        for (key, seconds) in timeouts_by_key(*timeouts) {
            if seconds != 0 {
                self.changed.insert(key, source);
            }
        }
        self.list = None;
    }

    /// Each timeout with its source, one timeout at a time, without timeouts from keepalived.conf.
    pub(super) fn sourced_timeouts(&self, timeouts: Timeouts) -> Vec<(Timeouts, Source)> {
        let Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds } = timeouts;
        [
            Timeouts { tcp_seconds, ..Timeouts::UNSET },
            Timeouts { tcp_fin_seconds, ..Timeouts::UNSET },
            Timeouts { udp_seconds, ..Timeouts::UNSET },
        ]
        .into_iter()
        .zip(self.timeout_sources().0.map(Option::unwrap_or_default))
        .filter(|(_, source)| *source != Source::KeepalivedConf)
        .collect()
    }

    /// The sources of the timeouts.
    pub(super) fn timeout_sources(&self) -> TimeoutSources {
        TimeoutSources(timeouts_by_key(Timeouts::UNSET).map(|(key, _)| self.changed.get(&key).copied()))
    }

    /// Notes that the timeouts have these sources again.
    pub(super) fn restore_timeout_sources(&mut self, sources: TimeoutSources) {
        for ((key, _), source) in timeouts_by_key(Timeouts::UNSET).into_iter().zip(sources.0) {
            self.changed.remove(&key);
            self.changed.extend(source.map(|source| (key, source)));
        }
        self.list = None;
    }

    /// The settings in force, in the order of their keys. The same list as before, unless a setting has changed.
    pub(super) fn list(&mut self, timeouts: Timeouts) -> &Arc<[Setting]> {
        let Self { ipvs, feedback, start, changed, list, .. } = self;
        list.get_or_insert_with(|| {
            let mut all: BTreeMap<_, _> =
                start.iter().map(|setting| (setting.key.clone(), setting.clone())).collect();
            for (key, value) in flattened("", serde_json::to_value(ipvs).unwrap_or_default())
                .into_iter()
                .chain(flattened("feedback", serde_json::to_value(feedback).unwrap_or_default()))
                .chain(timeouts_by_key(timeouts).map(|(key, seconds)| (key, seconds.into())))
            {
                let at_start = all.get(&key).map(|setting| setting.source).unwrap_or_default();
                let source = changed.get(&key).copied().unwrap_or(at_start);
                all.insert(key.clone(), Setting { key, value, source });
            }
            all.into_values().collect()
        })
    }

    /// Notes the available pages of memory (`None`: unknown), and the free entries and the size of the connection
    /// table. A table with less than an eighth free counts as short memory, too. A full table counts as half of
    /// `amemthresh`, so that `drop_packet` still drops only every second packet.
    pub(super) fn observe(&mut self, pages: Option<u32>, (free, size): (usize, usize)) {
        let half = (self.ipvs.amemthresh / 2) as usize;
        let entries = (free * 8 < size).then(|| (half + half * free * 8 / size) as u32);
        let available = pages.into_iter().chain(entries).min();
        let before = self.ipvs;
        self.memory = self.ipvs.observe(available.unwrap_or(u32::MAX));
        if self.ipvs != before {
            self.list = None;
        }
    }

    /// The settings that workers use.
    pub(super) fn settings(&self, state: &State) -> Settings {
        let Self { ipvs, memory, .. } = *self;
        let timeouts = state.timeouts();
        let is_backup = state.daemons().iter().any(|daemon| daemon.role == SyncRole::Backup);
        // Less memory drops more packets. Source: ipvs-behaviour, section 3.7.
        let rate = match memory {
            Memory::Short { free_pages } if ipvs.drop_packet.is_automatic() => {
                ipvs.amemthresh / ipvs.amemthresh.saturating_sub(free_pages).max(1)
            }
            _ => ipvs.am_droprate,
        };
        Settings {
            tcp_established: Duration::from_secs(timeouts.tcp_seconds.into()),
            tcp_fin_wait: Duration::from_secs(timeouts.tcp_fin_seconds.into()),
            udp: Duration::from_secs(timeouts.udp_seconds.into()),
            icmp_msgs_per_sec: ipvs.icmp_msgs_per_sec,
            conn_reuse_mode: ConnReuse(ipvs.conn_reuse_mode),
            expire_nodest_conn: ipvs.expire_nodest_conn.0,
            expire_quiescent_template: ipvs.expire_quiescent_template.0,
            udp_nodest_reschedule: ipvs.udp_nodest_reschedule.0,
            sloppy_tcp: ipvs.sloppy_tcp.0,
            sloppy_sctp: ipvs.sloppy_sctp.0,
            secure_tcp: ipvs.secure_tcp.is_on(memory),
            memory_short: memory != Memory::Plenty,
            drops_entries: ipvs.drops_entries(memory),
            drop_packet_rate: if ipvs.drop_packet.is_on(memory) { rate } else { 0 },
            nat_icmp_send: ipvs.nat_icmp_send.0,
            forward_shared: ipvs.forward_shared.0,
            mss_clamp: match ipvs.mss_clamp {
                settings::MssClamp::Off => MssClamp::Off,
                settings::MssClamp::Tunnels => MssClamp::Tunnels,
                settings::MssClamp::All => MssClamp::All,
            },
            pmtu_disc: ipvs.pmtu_disc.0,
            cache_bypass: ipvs.cache_bypass.0,
            schedule_icmp: ipvs.schedule_icmp.0,
            requests_stay: ipvs.backup_only.0 && is_backup,
        }
    }

    /// Stores the settings that schedulers read while they run.
    pub(super) fn tune(&self, tuning: &Tuning) {
        tuning.lblc_expiration_seconds.store(self.ipvs.lblc_expiration, Ordering::Relaxed);
        tuning.lblcr_expiration_seconds.store(self.ipvs.lblcr_expiration, Ordering::Relaxed);
    }
}

/// The source of each timeout since the start; `None`: the source at the start.
#[derive(Clone, Copy)]
pub(super) struct TimeoutSources([Option<Source>; 3]);

/// The timeouts by the keys of their settings.
fn timeouts_by_key(timeouts: Timeouts) -> [(String, u32); 3] {
    let Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds } = timeouts;
    [("tcp_seconds", tcp_seconds), ("tcp_fin_seconds", tcp_fin_seconds), ("udp_seconds", udp_seconds)]
        .map(|(name, value)| (format!("timeouts.{name}"), value))
}

#[cfg(test)]
mod tests {
    use crate::control::settings::*;

    #[test]
    fn defences_set_to_1_or_2_are_on_while_memory_is_short_and_drop_more_with_less_memory() {
        let mut ipvs = Ipvs::default();
        ipvs.set("drop_packet", "1").unwrap();
        ipvs.set("secure_tcp", "2").unwrap();
        let force = |memory| {
            let settings = ActiveSettings { memory, ..ActiveSettings::new(ipvs, Feedback::default()) };
            settings.settings(&State::default())
        };
        assert_eq!((force(Memory::Plenty).drop_packet_rate, force(Memory::Plenty).secure_tcp), (0, false));
        let short = Memory::Short { free_pages: 768 };
        assert_eq!((force(short).drop_packet_rate, force(short).secure_tcp), (4, true));
        assert_eq!(force(Memory::Short { free_pages: 0 }).drop_packet_rate, 1);
    }
}
