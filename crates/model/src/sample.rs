//! Sample reports, fully populated: every option is set, every list has an element.
//!
//! For tests of programs that show reports, and for the test that compares `docs/json.md` with the printed JSON. Values
//! may differ from a real director's; only the fields matter. Reports of health are in `health::sample`.

#![allow(missing_docs, reason = "for tests alone")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use xvs_proto::{Endpoint, Family, Prefix, Protocol};
use xvs_sched::{
    Above, Certainty, ClientAddress, ClientLimit, Figure, ForwardingMethod, ServiceKey, SynProxy, Weight,
};

use crate::config::command::Command;
use crate::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use crate::config::difference::Difference;
use crate::config::load_feedback::FeedbackRow;
use crate::config::service::{Netmask, SchedulerFlags, ServiceOptions};
use crate::config::sync_daemon::{SyncDaemon, SyncRole};
use crate::objects::Rule;
use crate::objects::limit::{ClientRow, LimitReport, LimitRow, SynLimitSummary};
use crate::objects::list_key::{ListKey, ListKind};
use crate::objects::listed::{ListEntry, ListRow, ListSummary};
use crate::objects::local::{Busiest, LocalAddress, LocalReport, LocalRow};
use crate::objects::mark::MarkRule;
use crate::objects::quic::{QuicConfig, QuicConfigRow, QuicRow, ServerIdRow};
use crate::report::capture::{CapturedFrame, CapturedPacket, Direction};
use crate::report::connection::{ConnectionDetail, ConnectionRow, EngineData};
use crate::report::event::{Event, Kind, Requester};
use crate::report::explain;
use crate::report::fleet::{FleetDirector, FleetReport, RefusedRules, RunningRules, Silence, Trial};
use crate::report::health::sample::{real_server, report, virtual_server};
use crate::report::health::{
    AgentHealth, AgentMode, CheckState, Counts, HealthReport, SorryServerHealth, Weights,
};
use crate::report::listing::{DestinationRow, Rates, ServiceRow, Stats};
use crate::report::page::{PageServer, PageService, ServerState, ServiceState, StatusPage};
use crate::report::response::ResponseTimes;
use crate::report::setting::{Setting, Source};
use crate::report::status::{
    BondMember, ConnectionLogStatus, Drops, InterfaceOffload, InterfaceStatus, KernelStatus, Level,
    LinkState, OffloadStatus, RecentDrops, RulesFound, RulesStatus, StatusReport, SyncPeer, SyncStatus,
    SyncTable, TableStatus, WorkerStatus,
};
use crate::report::warning::Warning;

/// A setting of xvs.toml, and one that has no value.
pub fn settings() -> Vec<Setting> {
    vec![
        Setting { key: "sloppy_tcp".to_owned(), value: 1.into(), source: Source::Toml },
        Setting { key: "metrics_address".to_owned(), value: Value::Null, source: Source::Default },
    ]
}

/// A director with one warning.
pub fn status() -> StatusReport {
    let drops = Drops {
        reason: "kernel_ring_full".to_owned(),
        packets: 7,
        what: "a worker was not fast enough for its RX ring".to_owned(),
    };
    StatusReport {
        state: Level::Warning,
        warnings: vec![Warning::sample().text],
        warning_details: vec![Warning::sample()],
        host: "lb1".to_owned(),
        version: "1.2.3".to_owned(),
        uptime_seconds: 59,
        epoch: 4,
        services: 1,
        services_without_destination: 1,
        destinations: 2,
        health: Some(Counts {
            real_servers: 13,
            real_servers_up: 12,
            virtual_servers: 3,
            virtual_servers_well: 2,
        }),
        disabled: vec!["192.0.2.11".to_owned(), "192.0.2.12:80 of TCP 198.51.100.1:80".to_owned()],
        lists: lists().into_iter().map(|row| row.summary).collect(),
        syn_limits: vec![SynLimitSummary {
            service: ServiceKey::tcp(Endpoint::new([198, 51, 100, 1], 80)),
            rate: 5000,
            dropped: 8,
        }],
        interfaces: vec![interface()],
        workers: vec![worker()],
        table: TableStatus { size: 1024, connections: 3, percent: 0.3, pages: "small pages".to_owned() },
        offload: Some(OffloadStatus { connections: 12, packets: 45_000 }),
        drops: vec![drops.clone()],
        hold_seconds: 10.0,
        held_packets: 8,
        sync: vec![SyncStatus {
            role: SyncRole::Master,
            interface: "eth1".to_owned(),
            sync_id: 5,
            messages: 1200,
            failed_messages: 3,
            connections: 70_000,
            lost_connections: 9,
            sync_peers: vec![IpAddr::from([192, 0, 2, 2])],
            peers: vec![SyncPeer {
                address: IpAddr::from([192, 0, 2, 2]),
                silent_seconds: Some(12),
                messages: 1100,
                refused_messages: 2,
                refused: Some("it is a copy of an earlier one".to_owned()),
                table: SyncTable::Moving,
                connections: 350_000,
                of: 1_000_000,
                why: Some("messages were lost here".to_owned()),
            }],
        }],
        log_lines_lost: 3,
        connection_log: Some(ConnectionLogStatus::sample()),
        unconfirmed_seconds: Some(7),
        journal_saved_at_millis: Some(1_700_000_000_000),
        recent_drops: RecentDrops { seconds: 61, reasons: vec![drops] },
        rules: Some(RulesStatus { file: "/etc/xvs/rules".to_owned(), found: RulesFound::Differences(3) }),
        fleet: Some(fleet()),
        kernel: Some(KernelStatus { services: 4, services_left: 1 }),
        settings: settings(),
    }
}

/// A fleet of one director, with a trial that it has refused.
pub fn fleet() -> FleetReport {
    FleetReport {
        fleet: "prod".to_owned(),
        director: "lb1".to_owned(),
        etcd: Some("https://192.0.2.21:2379".to_owned()),
        silent: Some(Silence { why: "no answer".to_owned(), seconds: 12 }),
        rules: Some(12),
        trial: Some(Trial { revision: 14, seconds_left: Some(9) }),
        warnings: vec![
            "etcd has not answered for 12 s, and the last rules stay in force: no answer".to_owned(),
        ],
        settling: vec!["lb2".into()],
        directors: vec![FleetDirector {
            name: "lb1".into(),
            instance: "0a1b2c3d".into(),
            host: "lb1.example.com".into(),
            version: "1.2.3".into(),
            runs: Some(RunningRules { revision: 12, sha256: "12".repeat(32) }),
            refused: Some(RefusedRules { revision: 14, why: "line 3: bad".into() }),
            warnings: vec!["wan is down".into()],
            warning_count: 2,
            services: 1,
            destinations: 2,
            differences: Some(1),
            digest: "0123456789abcdef".into(),
            connections: 3,
            rates: Rates { connections: 1, in_packets: 2, out_packets: 3, in_bytes: 4, out_bytes: 5 },
        }],
    }
}

/// An interface that fell back to generic XDP.
pub fn interface() -> InterfaceStatus {
    InterfaceStatus {
        name: "wan".to_owned(),
        mode: "generic".to_owned(),
        why_not_native: Some("busy".to_owned()),
        queues: 2,
        state: LinkState::Gone,
        attached_again: 1,
        pinned: true,
        bond: Some(BondMember { name: "bond0".to_owned(), active: true }),
        offload: Some(InterfaceOffload { why_not: Some("it is a bond".to_owned()), refused_packets: 4 }),
    }
}

/// A worker that has counted packets.
pub fn worker() -> WorkerStatus {
    WorkerStatus {
        core: Some(1),
        queues: [("wan".to_owned(), vec![0, 1])].into(),
        copy_mode: "zero-copy".to_owned(),
        poll: "sleep".to_owned(),
        busy_percent: Some(12.5),
        counters: [("rx_packets".to_owned(), 9)].into(),
    }
}

/// The two results of comparing a rules file that [`status`] does not have: an error and faults.
pub fn rules() -> [RulesStatus; 2] {
    [RulesFound::Error("no such file".to_owned()), RulesFound::Faults(2)]
        .map(|found| RulesStatus { file: "/etc/xvs/rules".to_owned(), found })
}

/// A virtual server with checks that are failing, rising and suspended.
pub fn health() -> HealthReport {
    let mut servers = [
        CheckState::Failing { failures: 1, fall: 3 },
        CheckState::Rising { successes: 1, rise: 2 },
        CheckState::Suspended { is_up: true },
    ]
    .map(|state| real_server("192.0.2.11", state));
    servers[0].weights = Weights {
        operator: 3,
        health: Some(3),
        feedback: Some(2),
        in_force: Some(2),
        slow_start_percent: Some(40),
        disabled: false,
    };
    servers[1].checks[0].agent = Some(AgentHealth {
        answer: "400% drain".to_owned(),
        at_millis: 1_795_188_192_123,
        weight_percent: 256,
        excessive_percent: Some(400),
        mode: AgentMode::Drain,
    });
    servers[2].checks[0].not_run = Some("no socket: Too many open files (os error 24)".to_owned());
    let mut virtual_server = virtual_server("198.51.100.1", servers.into());
    virtual_server.sorry_server =
        Some(SorryServerHealth { endpoint: "192.0.2.99:80".to_owned(), serves: false });
    HealthReport {
        refused: Some("/etc/keepalived/keepalived.conf:3: error: a `}` without a `{` before it".to_owned()),
        faults: 1,
        first_faults: vec!["/etc/keepalived/keepalived.conf:4: warning: unknown keyword".to_owned()],
        drift: vec!["xvsadm -e -t 198.51.100.1:80 -r 192.0.2.11:80 -g -w 1".to_owned()],
        ..report(vec![virtual_server])
    }
}

/// A persistence template of a service, and a connection of a firewall mark's service.
pub fn connections() -> Vec<ConnectionRow> {
    let detail = ConnectionDetail {
        service: Some(address_service()),
        server: Some(server()),
        method: ForwardingMethod::FullNat,
        packets: 12,
        controls: 1,
        template: true,
        flags: vec!["proxy".to_owned()],
    };
    let template = ConnectionRow {
        protocol: Protocol::UDP,
        expires_seconds: 300,
        state: "ASSURED".to_owned(),
        client: client(),
        virtual_endpoint: vip(),
        dest: server(),
        local: Some(local()),
        engine: Some(EngineData { name: "sip".to_owned(), data: "call-1".into() }),
        detail: Some(detail.clone()),
    };
    let detail = ConnectionDetail { service: Some(mark_service()), template: false, ..detail };
    vec![template.clone(), ConnectionRow { detail: Some(detail), ..template }]
}

/// An IPv4 service with a GUE and a GRE destination, and an IPv6 service of a firewall mark.
pub fn services() -> Vec<ServiceRow> {
    let tunnels = [
        Tunnel::Gue { port: 6080, checksum: TunnelChecksum::Remote },
        Tunnel::Gre { checksum: TunnelChecksum::Full },
    ];
    let destinations = tunnels.map(|tunnel| DestinationRow {
        endpoint: server(),
        options: DestinationOptions {
            method: ForwardingMethod::Tunnel,
            weight: Weight(3),
            upper_threshold: 100,
            lower_threshold: 75,
            tunnel,
        },
        weight_in_force: Weight(2),
        active: 1,
        inactive: 2,
        persistent: 3,
        stats: Stats::sample(),
        rates: Rates::sample(),
        responses: ResponseTimes::new(&[0, 2, 1], 400),
    });
    let of_address = (address_service(), Netmask::V4(Ipv4Addr::BROADCAST), destinations.into());
    let of_mark = (mark_service(), Netmask::V6(128), Vec::new());
    let rows = [of_address, of_mark].map(|(key, netmask, destinations)| ServiceRow {
        key,
        options: ServiceOptions {
            scheduler: "sh".to_owned(),
            flags: SchedulerFlags(1),
            persistence_timeout_seconds: Some(300),
            netmask,
            persistence_engine: Some("sip".to_owned()),
            one_packet: true,
            client_address: ClientAddress::Proxy,
            syn_proxy: SynProxy::Auto,
            slow_start_seconds: Some(30),
        },
        stats: Stats::sample(),
        rates: Rates::sample(),
        destinations,
    });
    rows.into()
}

/// The daemons of connection synchronization.
pub fn sync_daemons() -> Vec<SyncDaemon> {
    vec![SyncDaemon {
        role: SyncRole::Master,
        interface: "lan".to_owned(),
        sync_id: 1,
        max_len_bytes: 1472,
        group: IpAddr::from([224, 0, 0, 81]),
        port: 8848,
        ttl: 1,
        peers: vec![IpAddr::from([192, 0, 2, 2])],
    }]
}

/// A change that was refused, and a warning, which no event has both.
pub fn event() -> Event {
    Event {
        number: 7,
        at_millis: 1_795_188_192_123,
        epoch: 12,
        by: Some(Requester { uid: 1000, pid: 4711, program: "xvsadm".to_owned() }),
        kind: Kind::Change,
        what: "xvsadm -C".to_owned(),
        refused: Some("permission denied".to_owned()),
        warning: Some(Warning::sample().key),
    }
}

/// Counters by name.
pub fn counters() -> BTreeMap<String, u64> {
    [("rx_packets".to_owned(), 9), ("tx_packets".to_owned(), 8)].into()
}

/// A mark rule with every condition.
pub fn mark_rule() -> MarkRule {
    MarkRule {
        dest: Some("198.51.100.0/24".parse().expect("a network")),
        source: Some("203.0.113.0/24".parse().expect("a network")),
        protocol: Some(Protocol::TCP),
        dest_ports: vec![80..=80, 8000..=8010],
        interface: Some("wan".to_owned()),
        mark: 1,
        mask: 0xff,
    }
}

/// A limit, and a client that it has refused.
pub fn limits() -> LimitReport {
    let service = ServiceKey::tcp(Endpoint::new([198, 51, 100, 1], 80));
    let limit = ClientLimit {
        connections: 200,
        rate: 50,
        burst: 100,
        above: Above::SynProxy,
        syn_rate: 5000,
        syn_burst: 1000,
    };
    let client = "192.0.2.7/32".parse().expect("it is a network");
    let clients = vec![ClientRow { client, service, connections: 200, refused: 12 }];
    LimitReport { limits: vec![LimitRow { service, limit, syns_dropped: 8 }], clients, unlimited: 1 }
}

/// A QUIC configuration without a key, and a server ID.
pub fn quic() -> QuicRow {
    let key_file = Some("/etc/xvs/quic.key".into());
    QuicRow {
        service: "UDP 198.51.100.1:443".parse().expect("a service"),
        configs: vec![QuicConfigRow {
            config: 0,
            options: QuicConfig { server_id_length: 3, nonce_length: 4, key_file },
            fault: Some("/etc/xvs/quic.key: No such file or directory".to_owned()),
        }],
        server_ids: vec![ServerIdRow {
            id: "0a0b0c".parse().expect("an ID"),
            server: server(),
            fault: Some("the service does not have this real server now".to_owned()),
        }],
    }
}

/// The use of one local address.
pub fn local_use() -> LocalReport {
    let row = LocalRow {
        local: LocalAddress { addr: local().addr, first_port: 5000, last_port: 5999, standby: false },
        connections: 1205,
        busiest: Some(Busiest { ports: 905, dest: server(), protocol: Protocol::TCP }),
    };
    LocalReport { addresses: vec![row], exhausted: 7 }
}

/// Access lists of a service of an address and of one of a mark.
pub fn lists() -> Vec<ListRow> {
    let rows = [address_service(), mark_service()].map(|service| ListRow {
        summary: ListSummary {
            list: ListKey { kind: ListKind::Deny, service: Some(service) },
            networks: 1001,
            dropped: 9,
        },
        file: Some("/etc/xvs/deny".into()),
        entries: vec![ListEntry {
            network: Prefix::host(local().addr),
            until: Some(1_700_000_600),
            seconds_left: Some(600),
        }],
    });
    rows.into()
}

/// A destination with a load report.
pub fn feedback() -> Vec<FeedbackRow> {
    vec![FeedbackRow {
        service: address_service().to_string(),
        server: server(),
        own_weight: Weight(10),
        weight_in_force: Weight(12),
        load_percent: Some(42.5),
        response_micros: Some(1200),
        age_seconds: Some(3),
    }]
}

/// A service that is edited.
pub fn differences() -> Vec<Difference> {
    let [before, after] = ["rr", "wlc"].map(|scheduler| ServiceOptions {
        scheduler: scheduler.to_owned(),
        ..ServiceOptions::of(Family::V4)
    });
    let key = address_service();
    vec![Difference {
        before: Some(Rule::Service { key, options: before }),
        after: Some(Command::EditService { key, options: after }),
    }]
}

/// A dropped packet.
pub fn captured() -> CapturedPacket {
    let frame = CapturedFrame {
        nanoseconds: 1_795_188_192_123_456_789,
        interface: "wan".to_owned(),
        direction: Direction::In,
        length: 60,
        bytes: vec![0xa5; 4],
    };
    CapturedPacket { verdict: "drop".to_owned(), reason: Some("no_route".to_owned()), frames: vec![frame] }
}

/// A report of `xvs explain` with every field set, including fields that exclude each other.
pub fn explained() -> explain::Report {
    let summary = explain::Summary {
        protocol: Protocol::TCP,
        from: client(),
        to: vip(),
        flags: Some("syn".to_owned()),
        ttl: 64,
        bytes: 40,
        fragment: false,
    };
    let entry = explain::Entry {
        origin: explain::Origin::Made,
        protocol: Protocol::TCP,
        client: client(),
        virtual_endpoint: vip(),
        dest: server(),
        local: Some(local()),
        method: "FullNat".to_owned(),
        state: "SYN_RECV".to_owned(),
        expires_millis: 60_000,
        packets: 1,
        call_id: Some("call-1".into()),
    };
    let candidate = explain::CandidateReport {
        server: server(),
        method: "FullNat".to_owned(),
        weight: 1,
        active: 2,
        inactive: 3,
        standing: explain::CandidateState::Chosen,
        slow_start_percent: Some(40),
        upper_threshold: Some(100),
        figures: vec![Figure { name: "overhead/weight".to_owned(), value: 0.5 }],
    };
    explain::Report {
        interface: "wan".to_owned(),
        packet: Some(summary.clone()),
        about: Some(summary.clone()),
        mark: 1,
        marked_by: Some("-d 198.51.100.1 --set-mark 1".to_owned()),
        service: Some(address_service().to_string()),
        met: Some(entry.clone()),
        direction: Some(explain::Direction::Inbound),
        template: Some(entry.clone()),
        choice: Some(explain::Choice {
            service: address_service().to_string(),
            scheduler: "wlc".to_owned(),
            rule: "the least overhead for its weight".to_owned(),
            certainty: Certainty::Determined,
            candidates: vec![candidate],
        }),
        quic: Some("its QUIC connection ID chooses 192.0.2.11:443".to_owned()),
        health: vec!["192.0.2.12:80 has been down for 12 s".to_owned()],
        connection: Some(entry),
        offload: Some("workers forward this connection: it is not established".to_owned()),
        next_hop: Some(explain::NextHop {
            to: server().addr,
            via: Some([10, 0, 0, 254].into()),
            interface: Some("lan".to_owned()),
            mac: Some("02:00:00:00:00:11".to_owned()),
            mtu: Some(1500),
            rule: Some("100: from 198.51.100.100 lookup 100".to_owned()),
            problem: Some("its link address is not known yet; see `ip neigh`".to_owned()),
        }),
        rewrite: Some(explain::Rewrite {
            method: "FullNat".to_owned(),
            from: Some(local()),
            to: Some(server()),
            tunnel: Some(explain::Tunnel { kind: "gre".to_owned(), from: local().addr, to: server().addr }),
            ttl: 63,
            pieces: 1,
        }),
        verdict: explain::Verdict::Transmit,
        reason: Some("no_route".to_owned()),
        why: Some("no route leads to the destination".to_owned()),
        advice: Some("see `ip route`".to_owned()),
        sent: vec![explain::SentFrame {
            interface: "lan".to_owned(),
            packet: Some(summary),
            frame: "a5a5".to_owned(),
        }],
        caveats: vec![explain::CaveatReport { name: "chance".to_owned(), what: "it is random".to_owned() }],
    }
}

fn client() -> Endpoint {
    Endpoint::new([203, 0, 113, 9], 4711)
}

fn vip() -> Endpoint {
    Endpoint::new([198, 51, 100, 1], 80)
}

fn server() -> Endpoint {
    Endpoint::new([192, 0, 2, 11], 80)
}

fn local() -> Endpoint {
    Endpoint::new([192, 0, 2, 1], 5000)
}

fn address_service() -> ServiceKey {
    ServiceKey::tcp(vip())
}

fn mark_service() -> ServiceKey {
    ServiceKey::Mark { mark: 7, family: Family::V6 }
}

/// The document of the status page, with a service that does not work.
pub fn page() -> Value {
    let service = PageService {
        service: "TCP 198.51.100.1:80".to_owned(),
        rule: "-t 198.51.100.1:80 -s mh".to_owned(),
        state: ServiceState::Down,
        why: Some("has only real servers of weight 0".to_owned()),
        usable: 0,
        active: 1,
        inactive: 2,
        rates: Some(Rates::sample()),
        totals: Stats::sample(),
        limit: Some(ClientLimit { connections: 50, ..ClientLimit::default() }),
        servers: vec![PageServer {
            server: "192.0.2.11:80".to_owned(),
            state: ServerState::Quiescent,
            words: "weight 0: no new connections".to_owned(),
            method: Some("Masq"),
            weight: Some(0),
            active: Some(1),
            inactive: Some(2),
            rates: Some(Rates::sample()),
            totals: Some(Stats::sample()),
            response: ResponseTimes::new(&[0, 2, 1], 400).summary(),
            upper_threshold: Some(100),
            lower_threshold: Some(75),
        }],
    };
    serde_json::json!(StatusPage {
        status: &status(),
        rates: Some(Rates::sample()),
        totals: Stats::sample(),
        active: 1,
        inactive: 2,
        with_problem: 1,
        matching: 1,
        page: 1,
        pages: 1,
        sloppy_tcp: true,
        local_addresses: vec![local().addr],
        standby_addresses: vec![server().addr],
        services: vec![&service],
    })
}
