//! `xvs drain`: takes a real server out of scheduling and waits until it has no connections.
//!
//! The weight becomes 0, as with `xvsadm -e … -w 0`, unless 0 is in force already, as after `xvs disable`. Then the
//! connections are counted each second. Nothing is undone at the end: the command that restores the former weight is
//! printed.
//!
//! The remaining connections are ended by `api/connections.rs` of `ctl`, with the RST of `general_path/reset.rs` of
//! `dataplane`. For lasting maintenance, see `maintenance.rs`.
use std::io::{IsTerminal, Write};
use std::time::Duration;
use std::{io, thread};

use clap::{Args, ValueEnum};
use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xvs_ipvsadm::{LineError, RealServerArgument, ServiceArgument, SystemResolver};
use xvs_model::config::command::Command;
use xvs_model::config::destination::DestinationOptions;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Rule;
use xvs_model::objects::disabled::Disabled;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_model::report::connection::{Ended, Filter, Kind};
use xvs_model::report::health::HealthReport;
use xvs_model::report::listing::{DestinationRow, ServiceRow};
use xvs_proto::Endpoint;
use xvs_sched::{ServiceKey, Weight};

use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::{counted, seconds};
use crate::servers::refused_by_hash;

/// The arguments of `xvs drain`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("service").required(true))]
pub(crate) struct Arguments {
    #[command(flatten)]
    service: ServiceArgument,
    #[command(flatten)]
    server: RealServerArgument,
    /// Wait for active connections only; closed connections stay in the table for two minutes (TIME_WAIT)
    #[arg(long)]
    active: bool,
    /// Wait no longer than this time, such as 90s or 5m [default: until no connection is left]
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    at_most: Option<u32>,
    /// Action for connections that are left after that time
    #[arg(long, requires = "at_most")]
    then: Option<Then>,
}

/// What happens to the remaining connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Then {
    /// Delete them, without a packet to client or real server
    Drop,
    /// TCP: reset both ends at the connection's next packet; other protocols as with drop
    Reset,
}

impl Arguments {
    /// The service and the real server, parsed as ipvsadm parses them.
    fn named(&self) -> Result<(ServiceKey, Endpoint), LineError> {
        let mut words = self.service.words();
        words.extend(["-r", self.server.word()]);
        xvs_ipvsadm::real_server(&words, &SystemResolver::default())
    }
}

/// Why the wait ended, and what happens to the connections that are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// No connection is left.
    Nothing,
    /// Connections are left and the time is over; `--then` applies.
    AtTheEnd,
    /// Connections are left and are not touched: the wait was interrupted, or the weight was changed.
    Alone,
}

/// Why a pause ended.
enum Paused {
    /// The time.
    Out,
    /// A signal.
    Interrupted,
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let (service, endpoint) = arguments.named()?;
    let interrupted = signals()?;
    let pause = |time| match interrupted.recv_timeout(time) {
        Ok(()) => Paused::Interrupted,
        Err(_) => Paused::Out,
    };
    let terminal = io::stdout().is_terminal();
    let waits_for = if arguments.active { WaitsFor::Active } else { WaitsFor::All };
    Drain { director, out, service, endpoint, terminal, waits_for }.run(
        arguments.at_most.map(|seconds| Duration::from_secs(seconds.into())),
        arguments.then,
        pause,
    )
}

/// A channel that receives a message at SIGINT and at SIGTERM.
fn signals() -> io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (interrupt, interrupted) = bounded(1);
    thread::Builder::new().name("xvs-signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            // A message may be waiting already.
            let _ = interrupt.try_send(());
        }
    })?;
    Ok(interrupted)
}

/// Which connections are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Active,
    All,
}

/// The drain of a real server.
struct Drain<'a> {
    director: &'a mut dyn Director,
    out: &'a mut dyn Write,
    service: ServiceKey,
    endpoint: Endpoint,
    /// Whether a line can be written over the last one.
    terminal: bool,
    waits_for: WaitsFor,
}

impl Drain<'_> {
    fn run(
        mut self,
        at_most: Option<Duration>,
        then: Option<Then>,
        mut pause: impl FnMut(Duration) -> Paused,
    ) -> Done {
        let (listed, mut row) = self.rows()?;
        if let Some(refused) = refused_by_hash(&listed) {
            writeln!(self.out, "warning: {refused}")?;
        }
        let former = (row.weight_in_force != Weight(0)).then(|| row.options.clone());
        self.quiesce(former.as_ref())?;
        if row.persistent > 0 {
            writeln!(
                self.out,
                "{} remembered by persistence, and still forwarded to it, unless expire_quiescent_template \
                 is 1 (`xvs set`)",
                counted(row.persistent.into(), "client is", "clients are")
            )?;
        }
        let mut waited = Duration::ZERO;
        let mut is_announced = self.waits_for == WaitsFor::Active;
        let (ended, left) = loop {
            row = self.row()?;
            if row.active + row.inactive == 0 {
                break ("drained: no connection is left".to_owned(), Left::Nothing);
            }
            if row.active == 0 && self.waits_for == WaitsFor::Active {
                let inactive = row.inactive;
                break (
                    format!("drained: no connection is active; {inactive} inactive expire by themselves"),
                    Left::Nothing,
                );
            }
            if row.active == 0 && !is_announced {
                is_announced = true;
                self.clear()?;
                writeln!(
                    self.out,
                    "waiting for inactive connections (closed ones stay for two minutes, UDP for its \
                     timeout); --active does not"
                )?;
            }
            if row.weight_in_force != Weight(0) {
                let weight = row.weight_in_force.0;
                break (format!("its weight was changed to {weight}; not waiting any more"), Left::Alone);
            }
            if at_most.is_some_and(|most| waited >= most) {
                break (format!("the time is over: {}", counts(&row)), Left::AtTheEnd);
            }
            self.progress(&row, waited)?;
            if let Paused::Interrupted = pause(INTERVAL) {
                break (format!("interrupted: {}", counts(&row)), Left::Alone);
            }
            waited += INTERVAL;
        };
        self.clear()?;
        writeln!(self.out, "{ended}")?;
        let then = then.filter(|_| left == Left::AtTheEnd);
        match then {
            Some(Then::Drop) => self.drop_all(Kind::Connections)?,
            Some(Then::Reset) => self.reset_connections()?,
            None => DONE,
        };
        if then.is_some() {
            // Templates of connections that wait for their reset stay.
            self.drop_all(Kind::Templates)?;
        }
        self.show_former(former)?;
        Ok(if then.is_some() || left == Left::Nothing { DONE } else { FAILED })
    }

    /// The real server's current row of the listing.
    fn row(&mut self) -> Result<DestinationRow, Failure> {
        self.rows().map(|(_, row)| row)
    }

    /// The row of the service and the row of the real server.
    fn rows(&mut self) -> Result<(ServiceRow, DestinationRow), Failure> {
        let (service, endpoint) = (self.service, self.endpoint);
        question::service(service)
            .ask(self.director)?
            .into_iter()
            .find_map(|listed| {
                let row = listed.destinations.iter().find(|row| row.endpoint == endpoint)?.clone();
                Some((listed, row))
            })
            .ok_or(Failure::Refused(CommandError::NoSuchDestination { service, endpoint }))
    }

    /// Gives it weight 0; `former`: its options, unless its weight in force is 0 already.
    fn quiesce(&mut self, former: Option<&DestinationOptions>) -> Done {
        let Self { service, endpoint, .. } = *self;
        let named = format!("real server {endpoint} of {service}");
        let Some(former) = former else {
            writeln!(self.out, "{named} has weight 0 already")?;
            return if self.is_disabled()? { Ok(DONE) } else { self.warn_of_checks() };
        };
        let options = DestinationOptions { weight: Weight(0), ..former.clone() };
        question::change(Command::EditDestination { service, endpoint, options }).ask(self.director)?;
        writeln!(self.out, "{named}: weight {}, now 0", former.weight.0)?;
        self.warn_of_checks()
    }

    /// Ends the real server's connections, or its templates.
    fn drop_all(&mut self, kind: Kind) -> Done {
        let Ended { ended, .. } = question::end_connections(self.filter(kind)).ask(self.director)?;
        self.print_ended(kind, ended)
    }

    /// Marks the real server's TCP connections for a reset and ends its other connections.
    fn reset_connections(&mut self) -> Done {
        let Ended { ended, marked } =
            question::reset_connections(self.filter(Kind::Connections)).ask(self.director)?;
        writeln!(
            self.out,
            "{} next packet",
            counted(marked, "connection is reset at its", "connections are reset at their")
        )?;
        if ended > 0 { self.print_ended(Kind::Connections, ended) } else { Ok(DONE) }
    }

    fn filter(&self, kind: Kind) -> Filter {
        Filter { kind, service: Some(self.service), server: Some(self.endpoint), ..Filter::default() }
    }

    fn print_ended(&mut self, kind: Kind, ended: u64) -> Done {
        let dropped = match kind {
            Kind::Connections => counted(ended, "connection", "connections"),
            Kind::Templates if ended == 0 => return Ok(DONE),
            Kind::Templates => counted(ended, "template", "templates"),
        };
        writeln!(self.out, "dropped {dropped}")?;
        Ok(DONE)
    }

    /// One line that changes on a terminal, a new one every few seconds elsewhere.
    fn progress(&mut self, row: &DestinationRow, waited: Duration) -> io::Result<()> {
        let seconds = waited.as_secs();
        let line = format!("{:02}:{:02}  {}", seconds / 60, seconds % 60, counts(row));
        if self.terminal {
            write!(self.out, "{ERASE}{line}")?;
        } else if seconds.is_multiple_of(EVERY_SECONDS) {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.terminal { write!(self.out, "{ERASE}") } else { Ok(()) }
    }

    fn show_former(&mut self, former: Option<DestinationOptions>) -> io::Result<()> {
        let Self { service, endpoint, .. } = *self;
        let Some(options) = former else { return Ok(()) };
        let weight = options.weight.0;
        let back = xvs_ipvsadm::command_line(&Command::EditDestination { service, endpoint, options });
        writeln!(self.out, "its weight was {weight}; to restore it:\n  {back}")
    }

    fn is_disabled(&mut self) -> Result<bool, Failure> {
        Ok(question::disabled().ask(self.director)?.includes(self.service, self.endpoint))
    }

    /// Warns that health checks may restore the weight, if the service comes from keepalived.conf.
    fn warn_of_checks(&mut self) -> Done {
        let service = self.service.to_string();
        if let Some(HealthReport { file, virtual_servers, .. }) = question::health().ask(self.director)?
            && virtual_servers.iter().any(|server| server.services.contains(&service))
        {
            let disabled = Disabled { server: self.endpoint.into(), service: Some(self.service) };
            let disable = xvs_ipvsadm::command_line(&Command::Add(Rule::Disabled(disabled)));
            writeln!(
                self.out,
                "{file} has this service: its checks and `xvs reload` may restore the weight; `{disable}` \
                 lasts"
            )?;
        }
        Ok(DONE)
    }
}

fn counts(row: &DestinationRow) -> String {
    format!("{} active, {} inactive", counted(row.active.into(), "connection", "connections"), row.inactive)
}

/// Time between two counts of the connections.
const INTERVAL: Duration = Duration::from_secs(1);
/// Seconds between two lines of progress on an output that is no terminal.
const EVERY_SECONDS: u64 = 5;
/// Returns to the beginning of the line and erases it (ECMA-48 EL).
const ERASE: &str = "\r\x1b[K";

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use xvs_model::protocol::question::{ControlRequest, Reply, Request};

    use xvs_model::config::service::ServiceOptions;
    use xvs_model::objects::disabled::DisabledServers;
    use xvs_model::report::connection::ConnectionRow;
    use xvs_model::report::health::sample;
    use xvs_proto::Family;
    use xvs_sched::ForwardingMethod;

    use crate::servers::drain::*;

    /// A director whose real server has the scripted numbers of active and inactive connections, one pair per count;
    /// then none.
    struct Script {
        looks: VecDeque<(u32, u32)>,
        options: DestinationOptions,
        service: ServiceOptions,
        persistent: u32,
        disabled: bool,
        health: Option<HealthReport>,
        asked: Vec<Request>,
        waits_for: WaitsFor,
    }

    impl Script {
        fn new(looks: &[(u32, u32)]) -> Self {
            let method = ForwardingMethod::FullNat;
            let options = DestinationOptions { method, weight: Weight(3), ..DestinationOptions::default() };
            Self {
                looks: looks.iter().copied().collect(),
                options,
                service: ServiceOptions::of(Family::V4),
                persistent: 0,
                disabled: false,
                health: None,
                asked: Vec::new(),
                waits_for: WaitsFor::All,
            }
        }

        /// The output of a run, and whether its exit code is `DONE`.
        fn drain(
            &mut self,
            at_most: Option<u64>,
            then: Option<Then>,
            pause: impl FnMut(Duration) -> Paused,
        ) -> (String, bool) {
            let mut out = Vec::new();
            let (service, endpoint) = (service(), server());
            let waits_for = self.waits_for;
            let drain =
                Drain { director: self, out: &mut out, service, endpoint, terminal: false, waits_for };
            let code = drain.run(at_most.map(Duration::from_secs), then, pause).unwrap();
            (String::from_utf8(out).unwrap(), code == DONE)
        }
    }

    fn service() -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([192, 0, 2, 1], 80))
    }

    fn server() -> Endpoint {
        Endpoint::new([192, 0, 2, 11], 80)
    }

    impl Director for Script {
        fn call(&mut self, request: Request) -> Result<Reply, Failure> {
            self.asked.push(request.clone());
            Ok(match request {
                Request::Control(ControlRequest::ListService(key)) => {
                    let (active, inactive) = self.looks.pop_front().unwrap_or((0, 0));
                    let row = DestinationRow {
                        endpoint: server(),
                        options: self.options.clone(),
                        weight_in_force: if self.disabled { Weight(0) } else { self.options.weight },
                        active,
                        inactive,
                        persistent: self.persistent,
                        stats: Default::default(),
                        rates: Default::default(),
                        responses: Default::default(),
                    };
                    Reply::Services(vec![ServiceRow {
                        key,
                        options: self.service.clone(),
                        stats: Default::default(),
                        rates: Default::default(),
                        destinations: vec![
                            DestinationRow { endpoint: Endpoint::new([192, 0, 2, 12], 80), ..row.clone() },
                            row,
                        ],
                    }])
                }
                Request::Control(ControlRequest::Change(Command::EditDestination { options, .. })) => {
                    self.options = options;
                    Reply::Done
                }
                Request::Health => Reply::Health(self.health.clone()),
                Request::Control(ControlRequest::Disabled) => Reply::Disabled(match self.disabled {
                    true => serde_json::from_str(r#"[{"server":"192.0.2.11:80","service":null}]"#).unwrap(),
                    false => DisabledServers::default(),
                }),
                Request::EndConnections(_) => Reply::Ended(Ended { ended: 2, marked: 0 }),
                Request::ResetConnections(_) => Reply::Ended(Ended { ended: 1, marked: 3 }),
                other => panic!("{other:?}"),
            })
        }

        fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
            Ok(())
        }
    }

    const BACK: &str =
        "its weight was 3; to restore it:\n  xvsadm -e -t 192.0.2.1:80 -r 192.0.2.11:80 --fullnat -w 3\n";

    #[test]
    fn drain_waits_until_no_connection_is_left_and_prints_the_former_weight() {
        let looks: Vec<_> = (0..9).map(|look| (9 - look, 1)).chain([(0, 0)]).collect();
        let mut script = Script::new(&looks);
        let (told, drained) = script.drain(None, None, |_| Paused::Out);
        let expected = format!(
            "real server 192.0.2.11:80 of TCP 192.0.2.1:80: weight 3, now 0\n\
             00:00  8 connections active, 1 inactive\n\
             00:05  3 connections active, 1 inactive\n\
             drained: no connection is left\n{BACK}"
        );
        assert_eq!((told, drained), (expected, true));
        assert_eq!(script.options.weight, Weight(0));
    }

    #[test]
    fn inactive_connections_are_waited_for_with_the_reason_and_with_active_they_are_not() {
        let looks = [(1, 1), (1, 1), (0, 2), (0, 2)];
        let (told, drained) = Script::new(&looks).drain(None, None, |_| Paused::Out);
        let reason = "\nwaiting for inactive connections (closed ones stay for two minutes, UDP for its timeout); --active does not\n";
        assert!(
            drained && told.matches(reason).count() == 1 && told.contains("no connection is left"),
            "{told}"
        );
        let mut script = Script { waits_for: WaitsFor::Active, ..Script::new(&looks) };
        let (told, drained) = script.drain(None, None, |_| Paused::Out);
        assert!(drained && !told.contains(reason), "{told}");
        assert!(told.contains("drained: no connection is active; 2 inactive expire by themselves"), "{told}");
        assert_eq!(script.looks.len(), 1, "it has ended with the last active one");
    }

    #[test]
    fn after_the_time_limit_remaining_connections_are_counted_and_dropped_or_reset_as_requested() {
        let (told, drained) = Script::new(&[(1, 0); 9]).drain(Some(3), None, |_| Paused::Out);
        assert!(told.contains("the time is over: 1 connection active, 0 inactive\nits weight"), "{told}");
        assert!(!drained);
        let mut script = Script::new(&[(1, 1); 9]);
        let (told, drained) = script.drain(Some(3), Some(Then::Drop), |_| Paused::Out);
        assert!(told.contains("inactive\ndropped 2 connections\ndropped 2 templates\nits weight"), "{told}");
        assert!(drained);
        let Request::EndConnections(filter) = &script.asked[script.asked.len() - 2] else { panic!() };
        assert_eq!((filter.service, filter.kind), (Some(service()), Kind::Connections));
        assert_eq!(filter.server, Some(server()));
        let mut script = Script::new(&[(1, 1); 9]);
        let (told, drained) = script.drain(Some(3), Some(Then::Reset), |_| Paused::Out);
        let expected = "inactive\n3 connections are reset at their next packet\n\
                        dropped 1 connection\ndropped 2 templates\nits weight";
        assert!(told.contains(expected) && drained, "{told}");
        let (_, drained) = Script::new(&[(1, 1)]).drain(Some(3), Some(Then::Drop), |_| Paused::Out);
        assert!(drained, "nothing is left to be dropped");
    }

    #[test]
    fn an_interrupt_or_a_raised_weight_stops_the_wait_and_ends_no_connection() {
        let mut script = Script::new(&[(4, 0); 9]);
        let (told, drained) = script.drain(Some(9), Some(Then::Drop), |_| Paused::Interrupted);
        assert!(told.contains("interrupted: 4 connections active, 0 inactive\nits weight was 3"), "{told}");
        assert!(!drained && !script.asked.iter().any(|asked| matches!(asked, Request::EndConnections(_))));

        struct Raised(Script);
        impl Director for Raised {
            fn call(&mut self, request: Request) -> Result<Reply, Failure> {
                if let Request::Control(ControlRequest::Change(_)) = request {
                    return Ok(Reply::Done);
                }
                self.0.call(request)
            }

            fn connections(
                &mut self,
                _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
            ) -> Result<(), Failure> {
                Ok(())
            }
        }
        let (mut raised, mut out) = (Raised(Script::new(&[(4, 0); 9])), Vec::new());
        let (service, endpoint) = (service(), server());
        let (director, waits_for) = (&mut raised, WaitsFor::All);
        let drain = Drain { director, out: &mut out, service, endpoint, terminal: false, waits_for };
        assert_eq!(drain.run(None, None, |_| Paused::Out).unwrap(), FAILED);
        let told = String::from_utf8(out).unwrap();
        assert!(told.contains("its weight was changed to 3; not waiting any more"), "{told}");
    }

    #[test]
    fn drain_warns_of_checks_that_gave_weight_0_unless_the_server_is_disabled() {
        for disabled in [false, true] {
            let mut script = Script { disabled, ..Script::new(&[]) };
            script.options.weight = Weight(0);
            script.health = Some(sample::report(vec![sample::virtual_server("192.0.2.1", Vec::new())]));
            let told = script.drain(None, None, |_| Paused::Out).0;
            assert_eq!(
                told.contains("its checks and `xvs reload` may restore the weight"),
                !disabled,
                "{told}"
            );
        }
    }

    #[test]
    fn drain_warns_if_keepalived_conf_has_the_service_and_not_otherwise() {
        for (address, is_announced) in [("192.0.2.1", true), ("192.0.2.2", false)] {
            let mut script = Script::new(&[]);
            script.health = Some(sample::report(vec![sample::virtual_server(address, Vec::new())]));
            let told = script.drain(None, None, |_| Paused::Out).0;
            let wanted = "keepalived.conf has this service: its checks and `xvs reload` may restore the weight; `xvs disable 192.0.2.11:80 -t 192.0.2.1:80` lasts\n";
            assert_eq!(told.contains(wanted), is_announced, "{told}");
        }
    }

    #[test]
    fn drain_says_first_that_a_hash_without_fallback_refuses_clients() {
        let mut script = Script::new(&[]);
        script.service.scheduler = "sh".to_owned();
        let (told, _) = script.drain(None, None, |_| Paused::Out);
        let expected = "warning: new clients that sh leads to it are refused meanwhile; `xvsadm -E -t 192.0.2.1:80 -s sh \
                        -b sh-fallback` gives them another\nreal server 192.0.2.11:80 of TCP 192.0.2.1:80: weight 3";
        assert!(told.starts_with(expected), "{told}");
        script.service.flags.0 |= 1;
        assert!(!script.drain(None, None, |_| Paused::Out).0.contains("refused"), "it has the fallback");
    }

    #[test]
    fn the_drain_of_a_disabled_server_waits_and_leaves_its_configured_weight() {
        let mut script = Script { disabled: true, ..Script::new(&[(2, 0), (1, 0)]) };
        let (told, drained) = script.drain(None, None, |_| Paused::Out);
        let expected = "real server 192.0.2.11:80 of TCP 192.0.2.1:80 has weight 0 already\n\
                        00:00  1 connection active, 0 inactive\ndrained: no connection is left\n";
        assert_eq!((&*told, drained, script.options.weight), (expected, true, Weight(3)));
        assert!(
            !script.asked.iter().any(|asked| matches!(asked, Request::Control(ControlRequest::Change(_))))
        );
    }

    #[test]
    fn drain_reports_persistent_clients_and_leaves_a_weight_of_0_unchanged() {
        let mut script = Script { persistent: 1, ..Script::new(&[(1, 0)]) };
        script.options.weight = Weight(0);
        let (told, drained) = script.drain(None, None, |_| Paused::Out);
        let expected =
            "real server 192.0.2.11:80 of TCP 192.0.2.1:80 has weight 0 already\n1 client is remembered";
        assert!(told.starts_with(expected) && told.ends_with("drained: no connection is left\n"), "{told}");
        assert!(
            drained
                && !script
                    .asked
                    .iter()
                    .any(|asked| matches!(asked, Request::Control(ControlRequest::Change(_))))
        );
    }
}
