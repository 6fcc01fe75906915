//! The packets that announce their connection to backups.
//!
//! Runs for each packet from a client while a master daemon runs, and when a template outlives its timeout. The rules
//! are the kernel's, so a backup sees the same connections from xvs as from a kernel. Cost: see
//! `snapshot/sync_master.rs`.
//!
//! Source: ipvs-behaviour, section 12.4.

use std::time::Duration;

use xvs_proto::Protocol;
use xvs_proto::sync::Version;

use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::clock::Millis;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, TableWorker};
use crate::snapshot::sync_master::{Announced, Last, SyncMaster};
use crate::snapshot::{Settings, Snapshot};

/// A worker that announces.
pub(crate) struct Announcer<'s> {
    master: &'s SyncMaster,
    settings: &'s Settings,
    worker: usize,
    now: Millis,
}

impl Flows {
    /// Announces the connection of a client's packet that has passed and was counted, if it is time.
    #[inline]
    pub(crate) fn announce(&self, id: ConnId, cx: Context<'_>) {
        if let Some(announcer) = Announcer::of(cx.snapshot, self.worker, cx.now) {
            announcer.packet(&self.table, id);
        }
    }
}

impl<'s> Announcer<'s> {
    /// `None`: no master daemon runs.
    #[inline]
    pub(crate) fn of(snapshot: &'s Snapshot, worker: usize, now: Millis) -> Option<Self> {
        Some(Self { master: snapshot.sync_master.as_deref()?, settings: &snapshot.settings, worker, now })
    }

    /// Whether a counted packet can announce its connection although the state does not change.
    #[inline]
    pub(crate) fn concerns(&self, connection: &Connection<'_>) -> bool {
        self.master.may_announce(connection.in_packets()) || connection.controller().is_some()
    }

    /// Announces the connection of a client's packet that has passed and was counted, and then its template, if it is
    /// time.
    pub(crate) fn packet(&self, table: &TableWorker, id: ConnId) {
        let connection = table.connection(id);
        let template = connection.controller();
        let is_alone = self.master.rules.templates_alone && is_persistent(table, &connection);
        let is_announced = !is_alone && self.announce(&connection, connection.in_packets());
        // Version 0 announces a template only with its connection.
        if let Some(template) = template
            && (is_announced || self.master.rules.version == Version::V1)
        {
            self.template(table, template);
        }
    }

    /// Announces the template of a packet without a connection (`--ops`) that has passed.
    pub(crate) fn one_packet(&self, table: &TableWorker, id: ConnId) {
        // Version 0 announces a template only with its connection, and there is none.
        if self.master.rules.version == Version::V1 {
            self.template(table, id);
        }
    }

    /// Counts this number of a client's packets, which the XDP program has forwarded, and makes the announcement that
    /// one of them would have caused. If there are more packets than a period has, only the last ones count for the
    /// template.
    pub(crate) fn packets(&self, table: &TableWorker, id: ConnId, packets: u64) {
        let connection = table.connection(id);
        let after = connection.in_packets().wrapping_add(packets as u32);
        let last = packets.min(self.master.rules.period.max(1).into()) as u32;
        for count in (0..last).rev().map(|back| after.wrapping_sub(back)) {
            connection.set_in_packets(count);
            if self.concerns(&connection) {
                self.packet(table, id);
            }
        }
    }

    fn template(&self, table: &TableWorker, id: ConnId) {
        let template = table.connection(id);
        let packets = match template.is_template() {
            true => template.count_in_packet(),
            false => self.master.rules.threshold,
        };
        self.announce(&template, packets);
    }

    /// Announces a template that outlives its timeout, because it controls connections.
    pub(crate) fn outlives(&self, table: &TableWorker, id: ConnId) {
        self.announce(&table.connection(id), self.master.rules.threshold);
    }

    /// Announces one connection or template, if it is time.
    fn announce(&self, connection: &Connection<'_>, packets: u32) -> bool {
        let id = connection.id();
        let generation = connection.generation();
        let state = connection.state();
        let shared = &self.master.shared;
        let last = shared.last(id, generation);
        let is_template = connection.is_template();
        let news = if is_template { News::Same } else { news(connection.protocol(), state, last.state) };
        let timeout = timeout(connection, state, self.settings);
        let retries = match news {
            News::Unfit => return false,
            News::Ends => 0,
            News::Same => match self.is_time(is_template, packets, timeout, last) {
                Some(retries) => retries,
                None => return false,
            },
        };
        shared.announce(self.worker, Announced { id, generation, state }, retries, self.now + timeout);
        true
    }

    /// Whether a connection is announced although its state has not changed, and which repetition this is.
    fn is_time(&self, is_template: bool, packets: u32, timeout: Duration, last: Last) -> Option<u8> {
        let rules = &self.master.rules;
        let end = self.now + timeout;
        let mut retries = 0;
        if !rules.refresh.is_zero() {
            let difference = Duration::from_millis(end.0.abs_diff(last.end.0));
            let since = Duration::from_millis(end.0.saturating_sub(last.end.0));
            if difference < rules.refresh.min((timeout / 2).max(SHORT_TIMEOUT)) {
                if last.retries >= rules.retries || since < rules.refresh / RETRY_PART {
                    return None;
                }
                retries = last.retries + 1;
            }
        }
        let is_counted = match (rules.period, rules.refresh.is_zero()) {
            (0, false) => true,
            (0, true) => self.master.is_counted(packets),
            _ => is_template || self.master.is_counted(packets),
        };
        is_counted.then_some(retries)
    }
}

/// Whether a template controls a connection, directly or through an FTP control connection.
fn is_persistent(table: &TableWorker, connection: &Connection<'_>) -> bool {
    connection.controller().is_some_and(|id| {
        let controller = table.connection(id);
        controller.is_template() || controller.controller().is_some()
    })
}

/// The relevance of a connection's state for a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Connections in this state are not announced.
    Unfit,
    /// The connection is ending, which was not announced yet: it is announced at once.
    Ends,
    /// The state is no reason to announce.
    Same,
}

fn news(protocol: Protocol, state: u8, announced: u8) -> News {
    let (is_fit, is_established) = match protocol {
        Protocol::TCP => {
            use TcpState::{Close, CloseWait, Established, FinWait, TimeWait};
            let state = TcpState::of(state);
            let fit = [Established, FinWait, Close, CloseWait, TimeWait].contains(&state);
            (fit, state == Established)
        }
        Protocol::SCTP => {
            use SctpState::{Closed, Established, ShutdownAckSent, ShutdownReceived, ShutdownSent};
            let state = SctpState::of(state);
            let fit = [Established, ShutdownSent, ShutdownReceived, ShutdownAckSent, Closed].contains(&state);
            (fit, state == Established)
        }
        _ => return News::Same,
    };
    match is_fit {
        false => News::Unfit,
        true if state != announced && !is_established => News::Ends,
        true => News::Same,
    }
}

/// Whether a connection in this state is announced: a TCP or SCTP connection must be, or have been, established.
pub(super) fn is_told(connection: &Connection<'_>, state: u8) -> bool {
    connection.is_template() || news(connection.protocol(), state, state) != News::Unfit
}

/// The timeout of a connection in this state, or of a template.
pub(super) fn timeout(connection: &Connection<'_>, state: u8, settings: &Settings) -> Duration {
    match connection.is_template() {
        true => Duration::from_secs(connection.timeout_seconds().into()),
        false => settings.timeout(connection.protocol(), state),
    }
}

/// The minimum change of a timeout that makes an announcement a new one.
const SHORT_TIMEOUT: Duration = Duration::from_secs(10);
/// A repetition follows the announcement after this fraction of the refresh period at the earliest.
const RETRY_PART: u32 = 8;
