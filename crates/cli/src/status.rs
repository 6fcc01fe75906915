//! `xvs status`: the status of the director on one screen.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::duration;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::report::status::{
    BondMember, ConnectionLogStatus, Drops, InterfaceOffload, InterfaceStatus, KernelStatus, Level,
    LogSinkStatus, OffloadStatus, RecentDrops, RulesFound, RulesStatus, StatusReport, SyncPeer, SyncStatus,
    SyncTable, TableStatus, WorkerStatus,
};

use crate::events::rfc_3339;
use crate::extensions::lists;
use crate::fleet;
use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::{counted, line, print};
use crate::servers::health;

/// The arguments of `xvs status`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 1 if there are warnings, and with 2 if no xvsd answers, as plug-ins of Nagios do
    #[arg(long)]
    pub(super) exit_code: bool,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let report = question::status().ask(director)?;
    print(&report, arguments.json, |report| screen(report), out)?;
    Ok(if arguments.exit_code && report.state == Level::Warning { FAILED } else { DONE })
}

/// The report as text. It begins with `ok` or `warning`; the warnings come next.
fn screen(report: &StatusReport) -> String {
    let StatusReport { version, epoch, table, .. } = report;
    let mut daemon =
        format!("xvsd {version}, up {}, configuration {epoch}", duration::in_words(report.uptime_seconds));
    if !report.warnings.is_empty() {
        daemon += &format!("; {}:", counted(report.warnings.len() as u64, "warning", "warnings"));
    }
    let mut lines = vec![line(&report.state.to_string(), &daemon)];
    lines.extend(report.warnings.iter().map(|warning| line("warning", warning)));
    lines.extend(report.interfaces.iter().map(interface));
    lines.extend(report.workers.iter().enumerate().map(worker));
    let without = match report.services_without_destination {
        0 => String::new(),
        services => format!(" ({services} without a usable real server)"),
    };
    let services = counted(report.services, "virtual service", "virtual services");
    let servers = counted(report.destinations, "real server", "real servers");
    lines.push(line("services", &format!("{services}{without}, {servers}")));
    if !report.disabled.is_empty() {
        lines.push(line("disabled", &format!("{}; `xvs enable` ends that", report.disabled.join(", "))));
    }
    lines.extend(report.lists.iter().map(|list| line("list", &lists::summary(list))));
    lines.extend(report.syn_limits.iter().map(|limit| line("SYN limit", &limit.to_string())));
    lines.extend(report.health.map(|counts| line("health", &health::counted(counts))));
    if let Some(millis) = report.journal_saved_at_millis {
        lines.push(line("journal", &format!("restored at the start, as of {}", rfc_3339(millis))));
    }
    lines.extend(rules(report.rules.as_ref(), report.unconfirmed_seconds));
    lines.extend(report.fleet.as_ref().map(|report| line("fleet", &fleet::summary(report))));
    lines.extend(report.kernel.map(kernel));
    let TableStatus { size, connections, percent, pages } = table;
    lines.push(line("table", &format!("{connections} of {size} connections ({percent:.1} %), {pages}")));
    for daemon in &report.sync {
        lines.push(sync(daemon));
        lines.extend(daemon.peers.iter().map(|peer| sync_peer(daemon.role, peer)));
    }
    lines.extend(report.offload.iter().flat_map(|status| offload(status, &report.interfaces)));
    lines.extend(report.connection_log.iter().flat_map(connection_log));
    lines.extend(hold(report));
    lines.extend(drops(&report.recent_drops));
    lines.concat()
}

/// What is followed of the kernel's IPVS.
fn kernel(KernelStatus { services, services_left }: KernelStatus) -> String {
    let left = match services_left {
        0 => String::new(),
        left => format!("; {left} left to the kernel"),
    };
    line("kernel", &format!("{} of its IPVS followed{left}", counted(services, "service", "services")))
}

fn interface(interface: &InterfaceStatus) -> String {
    let InterfaceStatus { name, mode, why_not_native, queues, state, attached_again, pinned, bond, .. } =
        interface;
    let why = why_not_native.as_ref().map(|why| format!(" (native refused: {why})")).unwrap_or_default();
    let queues = counted((*queues).into(), "queue", "queues");
    let again = match attached_again {
        0 => String::new(),
        1 => ", attached again once".to_owned(),
        times => format!(", attached again {times} times"),
    };
    let pinned = if *pinned { ", pinned" } else { "" };
    let bond = bond.as_ref().map_or(String::new(), |BondMember { name, active }| {
        format!(", {} in {name}", if *active { "active" } else { "not active" })
    });
    line("interface", &format!("{name}: {state}, {mode} XDP{why}, {queues}{bond}{pinned}{again}"))
}

fn worker((number, worker): (usize, &WorkerStatus)) -> String {
    let core = worker.core.map_or("not pinned".to_owned(), |core| format!("core {core}"));
    let busy = worker.busy_percent.map(|busy| format!(", {busy:.1} % busy")).unwrap_or_default();
    let polling = match worker.poll.as_str() {
        "" | "sleep" => String::new(),
        poll => format!(", {poll} polling"),
    };
    line(
        &format!("worker {number}"),
        &format!(
            "{core}{busy}, {}, {}{polling}; received {}, sent {}, passed to the kernel {}",
            queues(worker),
            worker.copy_mode,
            worker.received(),
            worker.sent(),
            worker.passed_to_kernel(),
        ),
    )
}

/// The state of the rules file, unless it equals the running state, and applied rules that wait for `xvs confirm`.
fn rules(rules: Option<&RulesStatus>, unconfirmed_seconds: Option<u64>) -> Vec<String> {
    let mut lines: Vec<_> =
        rules.and_then(rules_not_in_force).iter().map(|text| line("rules", text)).collect();
    if let Some(left) = unconfirmed_seconds {
        lines.push(line(
            "rules",
            &format!("applied rules are reverted in {left} s unless `xvs confirm` is run"),
        ));
    }
    lines
}

/// The difference between the rules in force and their file; `None` if they are equal.
pub(super) fn rules_not_in_force(RulesStatus { file, found }: &RulesStatus) -> Option<String> {
    Some(match found {
        RulesFound::Error(error) => format!("{file}: {error}"),
        RulesFound::Faults(faults) => {
            format!("{} in {file}; see `xvs check {file}`", counted(*faults, "fault", "faults"))
        }
        RulesFound::Differences(0) => return None,
        RulesFound::Differences(count) => {
            format!("{} from {file}; see `xvs plan {file}`", counted(*count, "difference", "differences"))
        }
    })
}

/// A daemon of connection synchronization.
fn sync(daemon: &SyncStatus) -> String {
    let SyncStatus {
        role, interface, sync_id, messages, failed_messages, connections, lost_connections, ..
    } = daemon;
    let with = if daemon.sync_peers.is_empty() { "" } else { " with " };
    let peers = daemon.sync_peers.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let messages = counted(*messages, "message", "messages");
    let (handled, failed) = match role {
        SyncRole::Master => (format!("{messages} sent"), "not sent"),
        SyncRole::Backup => (
            format!("{} from {messages}", counted(*connections, "connection", "connections")),
            "refused or discarded",
        ),
    };
    line(
        "sync",
        &format!(
            "{} on {interface}{with}{peers}, sync id {sync_id}; {handled}, {failed_messages} {failed}, {} \
             lost",
            role.name(),
            counted(*lost_connections, "connection", "connections")
        ),
    )
}

/// The state of the connection table that a daemon sends to a peer or receives from it.
fn sync_peer(role: SyncRole, peer: &SyncPeer) -> String {
    let SyncPeer { address, messages, refused_messages, connections, of, .. } = peer;
    let why = peer.why.as_deref().unwrap_or_default();
    let moved = format!("{connections} of {of} connections");
    let mut text = match (role, peer.table) {
        (SyncRole::Master, SyncTable::Whole | SyncTable::Stale) => {
            format!("table sent to {address}, {connections} connections")
        }
        (SyncRole::Master, SyncTable::Moving) => format!("sending the table to {address}, {moved}"),
        (SyncRole::Master, SyncTable::None) => format!("table not sent to {address}: {why}"),
        (SyncRole::Backup, SyncTable::Whole) => {
            format!("in sync with {address}, whose table had {connections} connections")
        }
        (SyncRole::Backup, SyncTable::Moving) => format!("fetching the table of {address}, {moved}"),
        (SyncRole::Backup, SyncTable::Stale) => format!("behind {address}: {why}"),
        (SyncRole::Backup, SyncTable::None) => format!("without the table of {address}: {why}"),
    };
    if role == SyncRole::Backup {
        text += &format!("; {}", counted(*messages, "message", "messages"));
        if let Some(why) = &peer.refused {
            text += &format!(", {refused_messages} refused: {why}");
        }
    }
    if let Some(silent) = peer.silent_seconds.filter(|silent| *silent >= SILENT) {
        text += &format!("; silent for {silent} s");
    }
    line("sync", &text)
}

/// The seconds without a message that are shown.
const SILENT: u64 = 3;

/// The file and the collector of the log of connections.
fn connection_log(log: &ConnectionLogStatus) -> impl Iterator<Item = String> {
    log.file.iter().chain(&log.collector).map(|LogSinkStatus { name, records, lost_records }| {
        let records = counted(*records, "record", "records");
        line("log", &format!("connections to {name}: {records}, {} lost", lost_records + log.lost_records))
    })
}

/// The offload of connections, and the interfaces without it.
fn offload(status: &OffloadStatus, interfaces: &[InterfaceStatus]) -> Vec<String> {
    let connections = counted(status.connections, "connection", "connections");
    let packets = counted(status.packets, "packet", "packets");
    let mut lines = vec![line("offload", &format!("{connections}; {packets} forwarded by the XDP program"))];
    for InterfaceStatus { name, offload, .. } in interfaces {
        let Some(InterfaceOffload { why_not, refused_packets }) = offload else { continue };
        lines.extend(why_not.as_ref().map(|why| line("offload", &format!("not by {name}: {why}"))));
        if *refused_packets > 0 {
            let refused = counted(*refused_packets, "forwarded packet", "forwarded packets");
            lines.push(line("offload", &format!("{name} has refused {refused}")));
        }
    }
    lines
}

/// The hold, unless there is none.
fn hold(report: &StatusReport) -> Option<String> {
    let length = Duration::try_from_secs_f64(report.hold_seconds).ok().filter(|length| !length.is_zero())?;
    Some(line(
        "hold",
        &format!(
            "{} after the end of xvsd; {} dropped while none served them",
            humantime::format_duration(length),
            counted(report.held_packets, "packet", "packets")
        ),
    ))
}

/// Packets dropped recently.
fn drops(recent: &RecentDrops) -> Vec<String> {
    let when = match recent.seconds {
        seconds @ 0..60 => format!("in the {seconds} s since the start"),
        _ => "in the last minute".to_owned(),
    };
    if recent.reasons.is_empty() {
        return vec![line("drops", &format!("none {when}"))];
    }
    let mut lines = vec![line("drops", &format!("{when}:"))];
    for Drops { packets, reason, what } in &recent.reasons {
        lines.push(line("drops", &format!("{packets} {reason}: {what}")));
    }
    lines
}

/// A worker's queues of each interface.
fn queues(worker: &WorkerStatus) -> String {
    let mut interfaces = Vec::new();
    for (name, numbers) in &worker.queues {
        let list: Vec<_> = numbers.iter().map(u32::to_string).collect();
        let noun = if list.len() == 1 { "queue" } else { "queues" };
        interfaces.push(format!("{name} {noun} {}", list.join(",")));
    }
    interfaces.join(", ")
}

#[cfg(test)]
mod tests {
    use xvs_model::report::status::LinkState;
    use xvs_model::sample;

    use crate::status::*;

    #[test]
    fn the_screen_uses_the_singular_for_one_and_shows_each_interfaces_state_and_queues() {
        let wan = InterfaceStatus { attached_again: 0, ..sample::interface() };
        let lan = InterfaceStatus {
            name: "lan".to_owned(),
            mode: "native".to_owned(),
            why_not_native: None,
            queues: 1,
            state: LinkState::Up,
            attached_again: 0,
            pinned: false,
            bond: None,
            offload: Some(InterfaceOffload { why_not: None, refused_packets: 0 }),
        };
        let mut worker = sample::worker();
        worker.queues.insert("lan".to_owned(), vec![0]);
        let report = StatusReport {
            services_without_destination: 0,
            disabled: vec!["192.0.2.11".to_owned()],
            interfaces: vec![lan, wan],
            workers: vec![worker],
            unconfirmed_seconds: None,
            rules: None,
            ..sample::status()
        };
        let expected = "warning    xvsd 1.2.3, up 59 s, configuration 4; 1 warning:\n\
            warning    wan is gone; it is attached again when it is back and up\n\
            interface  lan: up, native XDP, 1 queue\n\
            interface  wan: gone, generic XDP (native refused: busy), 2 queues, active in\n           \
            bond0, pinned\n\
            worker 0   core 1, 12.5 % busy, lan queue 0, wan queues 0,1, zero-copy; received\n           \
            9, sent 0, passed to the kernel 0\n\
            services   1 virtual service, 2 real servers\n\
            disabled   192.0.2.11; `xvs enable` ends that\n\
            list       deny list of TCP 198.51.100.1:80: 1001 networks, 9 packets dropped\n\
            list       deny list of FWM 7 IPv6: 1001 networks, 9 packets dropped\n\
            SYN limit  TCP 198.51.100.1:80: 5000 SYNs a second, 8 dropped\n\
            health     12 of 13 real servers up, 2 of 3 virtual servers with quorum\n\
            journal    restored at the start, as of 2023-11-14T22:13:20.000Z\n\
            fleet      lb1 of prod: rules of revision 12 of etcd, no other director\n\
            kernel     4 services of its IPVS followed; 1 left to the kernel\n\
            table      3 of 1024 connections (0.3 %), small pages\n\
            sync       master on eth1 with 192.0.2.2, sync id 5; 1200 messages sent, 3 not\n           \
            sent, 9 connections lost\n\
            sync       sending the table to 192.0.2.2, 350000 of 1000000 connections; silent\n           for 12 s\n\
            offload    12 connections; 45000 packets forwarded by the XDP program\n\
            offload    not by wan: it is a bond\n\
            offload    wan has refused 4 forwarded packets\n\
            log        connections to /var/log/xvs/connections.json: 9000 records, 2 lost\n\
            log        connections to 192.0.2.9:4739: 8900 records, 102 lost\n\
            hold       10s after the end of xvsd; 8 packets dropped while none served them\n\
            drops      in the last minute:\n\
            drops      7 kernel_ring_full: a worker was not fast enough for its RX ring\n";
        assert_eq!(screen(&report), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn drops_in_the_first_minute_are_those_since_the_start() {
        let none = drops(&RecentDrops { seconds: 12, reasons: Vec::new() });
        assert_eq!(none, ["drops      none in the 12 s since the start\n"]);
    }

    #[test]
    fn rules_are_shown_when_they_differ_have_faults_or_wait_to_be_confirmed() {
        let shown = |found| rules(Some(&RulesStatus { file: "r".to_owned(), found }), None);
        assert!(rules(None, None).is_empty() && shown(RulesFound::Differences(0)).is_empty());
        for (found, line) in [
            (RulesFound::Differences(3), "rules      3 differences from r; see `xvs plan r`\n"),
            (RulesFound::Faults(1), "rules      1 fault in r; see `xvs check r`\n"),
            (RulesFound::Error("not there".to_owned()), "rules      r: not there\n"),
        ] {
            assert_eq!(shown(found), [line]);
        }
        let waiting = rules(None, Some(7));
        assert_eq!(waiting, ["rules      applied rules are reverted in 7 s unless `xvs confirm` is run\n"]);
    }
}
