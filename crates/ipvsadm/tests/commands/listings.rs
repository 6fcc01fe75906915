//! Compares every form of every listing with the recorded output of ipvsadm.
//!
//! `kernel/state.txt` is the state of an IPVS, `kernel/listings.txt` the output of ipvsadm 1.31 for it, recorded by
//! `scripts/record-ipvsadm`. The same listings as JSON are parsed and compared with the state.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::io;

use xvs_ipvsadm::Output;
use xvs_ipvsadm::output;
use xvs_ipvsadm::resolver::FixedNames;
use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::service::{Netmask, SchedulerFlags, ServiceOptions};
use xvs_model::config::sync_daemon::{SyncDaemon, SyncRole};
use xvs_model::config::timeouts::Timeouts;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::{ConnectionRow, EngineData};
use xvs_model::report::listing::{DestinationRow, Rates, ServiceRow, Stats};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ClientAddress, ForwardingMethod, ServiceKey, SynProxy, Weight};

/// The state in `kernel/state.txt`.
#[derive(Default)]
struct Recorded {
    services: Vec<ServiceRow>,
    connections: Vec<ConnectionRow>,
    daemons: Vec<SyncDaemon>,
    timeouts: Timeouts,
}

impl Director for Recorded {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        Ok(match request {
            Request::Control(ControlRequest::ListServices) => Reply::Services(self.services.clone()),
            Request::Control(ControlRequest::ListService(key)) => {
                let found = self.services.iter().find(|row| row.key == key);
                Reply::Services(vec![found.ok_or(CommandError::NoSuchService(key))?.clone()])
            }
            Request::Control(ControlRequest::Timeouts) => Reply::Timeouts(self.timeouts),
            Request::Control(ControlRequest::Rules) => Reply::rules_of(&self.services, []),
            Request::Control(ControlRequest::Daemons) => Reply::Daemons(self.daemons.clone()),
            other => panic!("a listing does not send {other:?}"),
        })
    }

    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        self.connections.iter().cloned().try_for_each(each).map_err(Failure::Printing)
    }
}

/// The words of a line of `state.txt`.
struct Fields<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Fields<'a> {
    fn text(&mut self) -> &'a str {
        self.0.next().unwrap()
    }

    fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(&mut self) -> T {
        self.text().parse().unwrap()
    }

    fn endpoint(&mut self) -> Endpoint {
        Endpoint { addr: self.number(), port: self.number() }
    }

    fn counters(&mut self) -> (Stats, Rates) {
        let mut next = || self.number();
        let (connections, in_packets, out_packets, in_bytes, out_bytes) =
            (next(), next(), next(), next(), next());
        let stats = Stats { connections, in_packets, out_packets, in_bytes, out_bytes };
        let (connections, in_packets, out_packets, in_bytes, out_bytes) =
            (next(), next(), next(), next(), next());
        (stats, Rates { connections, in_packets, out_packets, in_bytes, out_bytes })
    }

    fn service(&mut self) -> ServiceRow {
        let (protocol, endpoint, mark) = (Protocol(self.number()), self.endpoint(), self.number());
        let family = endpoint.family();
        let key = match mark {
            0 => ServiceKey::Address { protocol, endpoint },
            mark => ServiceKey::Mark { mark, family },
        };
        let scheduler = self.text().to_owned();
        let flags = u8::from_str_radix(self.text(), 16).unwrap();
        let (timeout, mask, engine) = (self.number(), self.text(), self.text());
        let netmask = match family {
            Family::V4 => Netmask::V4(mask.parse().unwrap()),
            Family::V6 => Netmask::V6(mask.parse().unwrap()),
        };
        let options = ServiceOptions {
            scheduler,
            flags: SchedulerFlags(flags >> 3),
            persistence_timeout_seconds: (flags & 1 != 0).then_some(timeout),
            netmask,
            persistence_engine: (engine != "-").then(|| engine.to_owned()),
            one_packet: flags & 4 != 0,
            client_address: ClientAddress::Hidden,
            syn_proxy: SynProxy::Off,
            slow_start_seconds: None,
        };
        let (stats, rates) = self.counters();
        ServiceRow { key, options, stats, rates, destinations: Vec::new() }
    }

    fn destination(&mut self) -> DestinationRow {
        use ForwardingMethod::{DirectRouting, Local, Nat, Tunnel as Tunnelled};
        let endpoint = self.endpoint();
        let method = [Nat, Local, Tunnelled, DirectRouting][self.number::<usize>()];
        let weight = Weight(self.number());
        let (upper_threshold, lower_threshold) = (self.number(), self.number());
        let (active, inactive, persistent) = (self.number(), self.number(), self.number());
        let (kind, port) = (self.text(), self.number());
        let checksum =
            [TunnelChecksum::Without, TunnelChecksum::Full, TunnelChecksum::Remote][self.number::<usize>()];
        let tunnel = match kind {
            "0" => Tunnel::Ipip,
            "1" => Tunnel::Gue { port, checksum },
            _ => Tunnel::Gre { checksum },
        };
        let (stats, rates) = self.counters();
        let options = DestinationOptions { method, weight, upper_threshold, lower_threshold, tunnel };
        DestinationRow {
            endpoint,
            options,
            weight_in_force: weight,
            active,
            inactive,
            persistent,
            stats,
            rates,
            responses: Default::default(),
        }
    }

    fn connection(&mut self) -> ConnectionRow {
        let protocol = match self.text() {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            _ => Protocol::IP,
        };
        let [client, virtual_endpoint, dest] = [self.endpoint(), self.endpoint(), self.endpoint()];
        let (state, expires_seconds) = (self.text().to_owned(), self.number());
        let (name, data) = (self.text().to_owned(), self.text().to_owned());
        let engine = (name != "-").then_some(EngineData { name, data: data.into() });
        ConnectionRow {
            protocol,
            expires_seconds,
            state,
            client,
            virtual_endpoint,
            dest,
            local: None,
            engine,
            detail: None,
        }
    }

    fn daemon(&mut self) -> SyncDaemon {
        let role = if self.text() == "1" { SyncRole::Master } else { SyncRole::Backup };
        let (interface, sync_id, max_len_bytes) = (self.text().to_owned(), self.number(), self.number());
        let (group, port, ttl) = (self.number(), self.number(), self.number());
        SyncDaemon { role, interface, sync_id, max_len_bytes, group, port, ttl, peers: Vec::new() }
    }
}

fn state() -> Recorded {
    let mut state = Recorded::default();
    for line in include_str!("../kernel/state.txt").lines() {
        let mut fields = Fields(line.split_whitespace());
        match fields.text() {
            "service" => state.services.push(fields.service()),
            "dest" => state.services.last_mut().unwrap().destinations.push(fields.destination()),
            "connection" => state.connections.push(fields.connection()),
            "daemon" => state.daemons.push(fields.daemon()),
            "timeouts" => {
                let (tcp_seconds, tcp_fin_seconds) = (fields.number(), fields.number());
                state.timeouts = Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds: fields.number() };
            }
            _ => {}
        }
    }
    state
}

fn run(line: &str, state: &mut Recorded) -> Output {
    let argv: Vec<_> = format!("ipvsadm {line}").split(' ').map(str::to_owned).collect();
    output(&argv, "", state, &FixedNames::default())
}

#[test]
fn every_listing_in_every_form_is_what_ipvsadm_prints_to_the_byte() {
    let mut state = state();
    let recording = include_str!("../kernel/listings.txt");
    let mut listings = recording.split("\n$ ");
    let head = listings.next().unwrap();
    assert!(head.starts_with("# What ipvsadm 1.31 prints"), "{head}");
    let mut compared = 0;
    for listing in listings {
        let (line, printed) = listing.split_once('\n').unwrap();
        let output = run(line, &mut state);
        assert_eq!((output.exit, output.stderr.as_str()), (0, ""), "{line}");
        assert_eq!(output.stdout.trim_end_matches('\n'), printed.trim_end_matches('\n'), "{line}");
        compared += 1;
    }
    assert!(compared > 140, "{compared} listings");
}

#[test]
fn a_daemon_with_peers_is_listed_with_them_in_place_of_the_group() {
    let mut state = state();
    state.daemons.truncate(1);
    state.daemons[0].peers = vec![[192, 0, 2, 2].into(), [198, 51, 100, 2].into()];
    let printed = run("-L --daemon", &mut state).stdout;
    let (_, peers) = printed.split_once("maxlen=").unwrap();
    assert!(peers.contains(", peers=192.0.2.2,198.51.100.2, port="), "{printed}");
    assert!(!printed.contains("group="), "{printed}");
}

#[test]
fn every_listing_as_json_has_the_whole_state_whatever_its_columns() {
    let mut state = state();
    let listed = |line: &str, state: &mut Recorded| {
        let output = run(line, state);
        assert_eq!((output.exit, output.stderr.as_str()), (0, ""), "{line}");
        output.stdout
    };
    for form in ["", " --stats", " --rate --exact", " --thresholds", " --persistent-conn", " --tun-info"] {
        let rows = listed(&format!("-L -n --nosort --json{form}"), &mut state);
        assert_eq!(serde_json::from_str::<Vec<ServiceRow>>(&rows).unwrap(), state.services, "{form}");
    }
    let connections = listed("-L -n -c --json", &mut state);
    assert_eq!(serde_json::from_str::<Vec<ConnectionRow>>(&connections).unwrap(), state.connections);
    let daemons = listed("-L --daemon --json", &mut state);
    assert_eq!(serde_json::from_str::<Vec<SyncDaemon>>(&daemons).unwrap(), state.daemons);
    let timeouts = listed("-L --timeout --json", &mut state);
    assert_eq!(serde_json::from_str::<Timeouts>(&timeouts).unwrap(), state.timeouts);
}
