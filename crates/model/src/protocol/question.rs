//! Questions to the director, each with the type of its answer.
//!
//! A question is a [`Request`] with the reading of its [`Reply`], so a caller gets the answer or an error, and never
//! another kind of reply. Not here: answers in parts, such as connections, events and captures (`client.rs`).

use std::collections::BTreeMap;

use xvs_sched::ServiceKey;

use crate::config::command::Command;
use crate::config::difference::Difference;
use crate::config::load_feedback::FeedbackRow;
use crate::config::load_report::Server;
use crate::config::refusal::CommandError;
use crate::config::sync_daemon::SyncDaemon;
use crate::config::timeouts::Timeouts;
use crate::objects::Rule;
use crate::objects::disabled::DisabledServers;
use crate::objects::limit::LimitReport;
use crate::objects::list_key::ListKind;
use crate::objects::listed::ListRow;
use crate::objects::local::{LocalAddress, LocalReport};
use crate::objects::mark::MarkRule;
use crate::objects::quic::QuicRow;
use crate::protocol::client::{Director, Failure};
use crate::protocol::reply::Reply;
use crate::protocol::request::{ControlRequest, FleetRequest, Request, TakeOverStep, Verdict};
use crate::report::connection::{Ended, Filter};
use crate::report::daemon_facts::DaemonFacts;
use crate::report::explain;
use crate::report::health::HealthReport;
use crate::report::listing::ServiceRow;
use crate::report::setting::Setting;
use crate::report::status::StatusReport;
use crate::report::traffic::Traffic;

/// A question whose answer is a `T`; asked on the socket as a [`Request`], on the control thread as a
/// [`ControlRequest`].
pub struct Question<T, R = Request> {
    request: R,
    read: fn(Reply) -> Result<T, Box<Reply>>,
}

/// A question that the control thread answers.
pub type ControlQuestion<T> = Question<T, ControlRequest>;

impl<T, R: Into<Request>> Question<T, R> {
    /// Asks a director.
    ///
    /// # Errors
    /// The director refuses the request, cannot be reached, or sends another kind of reply.
    pub fn ask(self, director: &mut (impl Director + ?Sized)) -> Result<T, Failure> {
        let reply = director.call(self.request.into())?;
        (self.read)(reply).map_err(|other| Failure::unexpected(&other))
    }
}

impl<T> ControlQuestion<T> {
    /// Asks something that answers requests of the control thread.
    ///
    /// # Errors
    /// The request is refused, or the reply is of another kind.
    pub fn put(
        self,
        answer: impl FnOnce(ControlRequest) -> Result<Reply, CommandError>,
    ) -> Result<T, CommandError> {
        let reply = answer(self.request)?;
        (self.read)(reply)
            .map_err(|other| CommandError::Failed { why: Failure::unexpected(&other).to_string() })
    }
}

/// Reads a reply of this variant.
macro_rules! answer {
    ($variant:ident) => {
        |reply| match reply {
            Reply::$variant(answer) => Ok(answer),
            other => Err(Box::new(other)),
        }
    };
}

/// Declares questions of one kind of request: the request, and the variant of the reply with the type of its content.
macro_rules! questions {
    ($asked:ty; $($(#[$doc:meta])* fn $name:ident($($argument:ident: $of:ty),*)
        -> $variant:ident($type:ty) { $request:expr })*) => {
        $($(#[$doc])* pub fn $name($($argument: $of),*) -> Question<$type, $asked> {
            Question { request: $request, read: answer!($variant) }
        })*
    };
}

questions! { Request;
    /// Changes the rules of the fleet in etcd. The answer is their revision; the directors take them up later.
    fn change_fleet(request: FleetRequest) -> Fleet(u64) { Request::Fleet(request) }
    /// The number of connections, or templates, that match.
    fn count_connections(filter: Filter) -> Count(u64) { Request::CountConnections(filter) }
    /// Ends the connections, or templates, that match, without a packet to either end.
    fn end_connections(filter: Filter) -> Ended(Ended) { Request::EndConnections(filter) }
    /// Marks matching TCP connections for a reset at their next packet and ends the others.
    fn reset_connections(filter: Filter) -> Ended(Ended) { Request::ResetConnections(filter) }
    /// The number of connections of each local address.
    fn local_use() -> LocalUse(LocalReport) { Request::LocalUse }
    /// The health of real servers; `None` without a keepalived.conf.
    fn health() -> Health(Option<HealthReport>) { Request::Health }
    /// The status of the director.
    fn status() -> Status(Box<StatusReport>) { Request::Status }
    /// Every counter, summed over the workers.
    fn counters() -> Counters(BTreeMap<String, u64>) { Request::Counters }
    /// Totals of every service and destination.
    fn traffic() -> Traffic(Box<Traffic>) { Request::Traffic }
    /// What would happen to a packet.
    fn explain(question: explain::Question) -> Explained(Box<explain::Report>) { Request::Explain(question) }
    /// The daemon's view of the machine.
    fn examine() -> Examined(DaemonFacts) { Request::Examine }
    /// Reads xvs.toml and the keepalived.conf again. The answer is the changes, a line each.
    fn reload() -> Reloaded(String) { Request::Reload }
    /// As [`reload`], also if faults of the keepalived.conf end services that it served.
    fn reload_accepting_loss() -> Reloaded(String) { Request::ReloadAcceptingLoss }
}

questions! { ControlRequest;
    /// Several changes, published together. The answer has a result for each.
    fn restore(commands: Vec<Command>) -> Restored(Vec<Result<(), CommandError>>) {
        ControlRequest::Restore(commands)
    }
    /// Changes the running state to what rules describe. The answer is the differences that were removed.
    fn apply(rules: Vec<Command>, confirm_within_seconds: Option<u32>, keeps_locals: bool)
        -> Applied(Vec<Difference>) {
        ControlRequest::Apply { rules, confirm_within_seconds, keeps_locals }
    }
    /// Every service, in no particular order.
    fn services() -> Services(Vec<ServiceRow>) { ControlRequest::ListServices }
    /// One service, as the only row.
    fn service(key: ServiceKey) -> Services(Vec<ServiceRow>) { ControlRequest::ListService(key) }
    /// The timeouts in force.
    fn timeouts() -> Timeouts(Timeouts) { ControlRequest::Timeouts }
    /// The running synchronization daemons, the master first.
    fn daemons() -> Daemons(Vec<SyncDaemon>) { ControlRequest::Daemons }
    /// The mark rules of `xvs mark`, in the order in which they apply.
    fn marks() -> Marks(Vec<MarkRule>) { ControlRequest::Marks }
    /// The local addresses of FULLNAT, in the order of the commands.
    fn local_addresses() -> LocalAddresses(Vec<LocalAddress>) { ControlRequest::LocalAddresses }
    /// The disabled real servers.
    fn disabled() -> Disabled(DisabledServers) { ControlRequest::Disabled }
    /// The limits of clients, and at most this many of the clients that they concern most.
    fn limits(clients: u32) -> Limits(LimitReport) { ControlRequest::Limits { clients } }
    /// The access lists of this kind, that of all services first.
    fn lists(kind: ListKind) -> Lists(Vec<ListRow>) { ControlRequest::Lists(kind) }
    /// The QUIC configurations and server IDs, by service.
    fn quic() -> Quic(Vec<QuicRow>) { ControlRequest::Quic }
    /// The settings in force, in the order of their keys.
    fn settings() -> Settings(Vec<Setting>) { ControlRequest::Settings }
    /// Destinations whose weights follow load reports.
    fn feedback() -> Feedback(Vec<FeedbackRow>) { ControlRequest::Feedback }
}

/// The running state.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningRules {
    /// The rules that create it from an empty state.
    pub rules: Vec<Rule>,
    /// Services owned by health checks, which are not compared with rules.
    pub owned: Vec<ServiceKey>,
    /// The limits of clients that health checks own, which are not compared with rules either.
    pub owned_limits: Vec<Rule>,
}

/// The running state, as of one moment.
pub fn rules() -> ControlQuestion<RunningRules> {
    Question {
        request: ControlRequest::Rules,
        read: |reply| match reply {
            Reply::Rules { rules, owned, owned_limits } => Ok(RunningRules { rules, owned, owned_limits }),
            other => Err(Box::new(other)),
        },
    }
}

/// One change.
pub fn change(command: Command) -> ControlQuestion<()> {
    Question { request: ControlRequest::Change(command), read: done }
}

/// Sets a setting.
pub fn set(key: &str, value: &str) -> ControlQuestion<()> {
    Question { request: ControlRequest::Set { key: key.to_owned(), value: value.to_owned() }, read: done }
}

/// Reports the load of a real server, 0 to 100.
pub fn report_load(server: Server, load_percent: f64) -> ControlQuestion<()> {
    Question { request: ControlRequest::ReportLoad { server, load_percent }, read: done }
}

/// Keeps or takes back applied rules that wait for confirmation. The answer is the differences that were reverted;
/// `None`: the rules stay.
pub fn confirm(verdict: Verdict) -> ControlQuestion<Option<Vec<Difference>>> {
    Question {
        request: ControlRequest::Confirm(verdict),
        read: |reply| match reply {
            Reply::Done => Ok(None),
            Reply::Applied(differences) => Ok(Some(differences)),
            other => Err(Box::new(other)),
        },
    }
}

/// Whether the workers and the control thread make progress within this time. Refused with the name of a thread that
/// makes none.
pub fn healthy(within_millis: u32) -> Question<()> {
    Question { request: Request::Healthy { within_millis }, read: done }
}

/// Ends the daemon; `release`: the kernel gets all packets at once, and not after the hold.
pub fn stop(release: bool) -> Question<()> {
    Question { request: Request::Stop { release }, read: done }
}

/// Begins a take-over. The answer is the time of systemd's watchdog in milliseconds.
pub fn begin_take_over() -> Question<Option<u64>> {
    Question {
        request: Request::TakeOver(TakeOverStep::Begin),
        read: |reply| match reply {
            Reply::Prepares { watchdog_millis } => Ok(watchdog_millis),
            other => Err(Box::new(other)),
        },
    }
}

/// A later step of a take-over.
pub fn take_over(step: TakeOverStep) -> Question<()> {
    Question { request: Request::TakeOver(step), read: done }
}

fn done(reply: Reply) -> Result<(), Box<Reply>> {
    if reply == Reply::Done { Ok(()) } else { Err(Box::new(reply)) }
}
