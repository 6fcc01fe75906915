//! Questions to the director: each with the access that it needs, its form on the socket, and its answer.
//!
//! The list below makes [`Request`] and [`ControlRequest`], which are sent, [`Reply`], which is returned, and a
//! function for each question. The function returns a [`Question`], so a caller gets the answer or an error, and never
//! another kind of reply.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
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
use crate::protocol::request::{Access, FleetRequest, TakeOverStep, Verdict};
use crate::report::capture::{CaptureRequest, CapturedPacket, Missed};
use crate::report::connection::{ConnectionRow, Ended, Filter};
use crate::report::daemon_facts::DaemonFacts;
use crate::report::event::{EventBatch, EventQuery};
use crate::report::explain;
use crate::report::health::HealthReport;
use crate::report::listing::ServiceRow;
use crate::report::setting::Setting;
use crate::report::status::StatusReport;
use crate::report::traffic::Traffic;

/// Declares questions: access, variant of the request, and in brackets the function with the variant of the reply and
/// the type of its content. `->` makes this variant, `=>` takes one that another question has made; without either the
/// reply is [`Reply::Done`].
macro_rules! questions {
    ($(
        $(#[$asked_doc:meta])*
        $asked:ident $(or $inner:ident)? {$(
            $(#[$doc:meta])*
            $access:ident $variant:ident $(($type:ty))? $({$($(#[$field_doc:meta])* $field:ident: $of:ty,)+})?
            [$($name:ident $(-> $new:ident($answer:ty))? $(=> $old:ident($old_answer:ty))?)?];
        )+}
    )+) => {
        $(
            $(#[$asked_doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(rename_all = "snake_case")]
            pub enum $asked {
                $($(#[$doc])* $variant $(($type))? $({$($(#[$field_doc])* $field: $of,)+})?,)+
                $(
                    /// The control thread answers it.
                    #[serde(untagged)]
                    Control($inner),
                )?
            }

            impl $asked {
                /// The access that the request needs.
                pub fn access(&self) -> Access {
                    match self {
                        $(Self::$variant { .. } => Access::$access,)+
                        $(Self::Control(request) => <$inner>::access(request),)?
                    }
                }
            }

            $(question! {
                $(#[$doc])* $asked $variant $(($type))? $({$($field: $of),+})?
                [$($name $(-> $new($answer))? $(=> $old($old_answer))?)?]
            })+
        )+

        /// The reply to a request that succeeded.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reply {
            /// The change is in force for every packet from now on.
            Done,
            /// The running daemon has noted its successor.
            Prepares {
                /// The time of systemd's watchdog, which the successor has to notify from then on.
                watchdog_millis: Option<u64>,
            },
            /// The capture has ended; the numbers of frames that it missed.
            CaptureEnded(Missed),
            $($($($(
                #[doc = concat!("The answer to [`", stringify!($asked), "::", stringify!($variant), "`].")]
                $new($answer),
            )?)?)+)+
        }
    };
}

/// The function of one question.
macro_rules! question {
    ($(#[$doc:meta])* $asked:ident $variant:ident $(($type:ty))? $({$($field:ident: $of:ty),+})? []) => {};
    ($(#[$doc:meta])* $asked:ident $variant:ident $(($type:ty))? $({$($field:ident: $of:ty),+})?
        [$name:ident $($answer:tt)*]) => {
        $(#[$doc])*
        pub fn $name($(asked: $type)? $($($field: $of),+)?) -> Question<answer!($($answer)*), $asked> {
            Question {
                request: $asked::$variant $((<$type>::from(asked)))? $({$($field),+})?,
                read: read!($($answer)*),
            }
        }
    };
}

macro_rules! answer {
    () => {
        ()
    };
    ($arrow:tt $variant:ident($type:ty)) => {
        $type
    };
}

macro_rules! read {
    () => {
        |reply| if reply == Reply::Done { Ok(()) } else { Err(Box::new(reply)) }
    };
    ($arrow:tt $variant:ident($type:ty)) => {
        |reply| match reply {
            Reply::$variant(answer) => Ok(answer),
            other => Err(Box::new(other)),
        }
    };
}

questions! {
    /// A request of a client.
    ///
    /// On the socket the variants of both types stand side by side.
    Request or ControlRequest {
        /// Every connection and template, in parts.
        Read ListConnections [list_connections -> Connections(Vec<ConnectionRow>)];
        /// The connections, or templates, that match, each with its detail, in parts.
        Read FindConnections(Filter) [find_connections => Connections(Vec<ConnectionRow>)];
        /// The number of connections, or templates, that match.
        Read CountConnections(Filter) [count_connections -> Count(u64)];
        /// Ends the connections, or templates, that match, without a packet to either end.
        Change EndConnections(Filter) [end_connections -> Ended(Ended)];
        /// Marks matching TCP connections for a reset at their next packet and ends the others.
        Change ResetConnections(Filter) [reset_connections => Ended(Ended)];
        /// The number of connections of each local address.
        Read LocalUse [local_use -> LocalUse(LocalReport)];
        /// The health of real servers; `None` without a keepalived.conf.
        Read Health [health -> Health(Option<HealthReport>)];
        /// Whether the workers and the control thread make progress within this time. Refused with the name of a thread
        /// that makes none.
        Read Healthy {
            /// The time within which each of them must make progress.
            within_millis: u32,
        } [healthy];
        /// The status of the director.
        Read Status [status -> Status(Box<StatusReport>)];
        /// Every counter, by name, summed over the workers.
        Read Counters [counters -> Counters(BTreeMap<String, u64>)];
        /// Totals of every service and destination, in no particular order.
        Read Traffic [traffic -> Traffic(Box<Traffic>)];
        /// Remembered and new events, in parts.
        Read Events(EventQuery) [events -> Events(EventBatch)];
        /// What would happen to a packet.
        Read Explain(explain::Question) [explain -> Explained(Box<explain::Report>)];
        /// The daemon's view of the machine, for `xvs doctor`.
        Read Examine [examine -> Examined(DaemonFacts)];
        /// Captures packets until the client sends another byte or closes the connection. The first part is empty: the
        /// capture has begun. The last part has the numbers of missed frames. Packets contain the data of clients and
        /// servers, so this needs the right to change.
        Change Capture(CaptureRequest) [capture -> Captured(Vec<CapturedPacket>)];
        /// Reads xvs.toml and keepalived.conf again. The answer is the changes, a line each.
        Change Reload [reload -> Reloaded(String)];
        /// Reads both files again, also if faults of keepalived.conf end services that it served.
        Change ReloadAcceptingLoss [reload_accepting_loss => Reloaded(String)];
        /// Changes the rules of the fleet in etcd. The answer is their revision; the directors take them up later.
        Change Fleet(FleetRequest) [change_fleet -> Fleet(u64)];
        /// A step of a successor that takes over from the daemon.
        Change TakeOver(TakeOverStep) [];
        /// Ends the daemon, which replies before that.
        Change Stop {
            /// Whether the kernel gets all packets at once, and not after the hold.
            release: bool,
        } [stop];
    }

    /// A request that changes or reads the desired state, which the control thread owns.
    ControlRequest {
        /// One change.
        Change Change(Command) [change];
        /// Several changes, published together. A refused one is reported and the others are carried out. The answer
        /// has a result for each, in their order.
        Change Restore(Vec<Command>) [restore -> Restored(Vec<Result<(), CommandError>>)];
        /// Changes the running state to what these rules describe, all of it or nothing. The answer is the differences
        /// that were removed; empty if there were none.
        Change Apply {
            /// Commands that create the wanted state from an empty one.
            rules: Vec<Command>,
            /// Seconds after which the change is reverted unless it is confirmed; `None`: it stays.
            confirm_within_seconds: Option<u32>,
            /// Whether the running local addresses stay if the rules have none, as with rules of a fleet: each director
            /// has its own.
            #[serde(default)]
            keeps_locals: bool,
        } [apply -> Applied(Vec<Difference>)];
        /// Keeps or takes back applied rules that wait for confirmation.
        Change Confirm(Verdict) [];
        /// The running state, as of one moment.
        Read Rules [rules -> Rules(RunningRules)];
        /// Every service, in no particular order, each with its destinations in IPVS's order.
        Read ListServices [services -> Services(Vec<ServiceRow>)];
        /// One service, as the only row.
        Read ListService(ServiceKey) [service => Services(Vec<ServiceRow>)];
        /// The timeouts in force.
        Read Timeouts [timeouts -> Timeouts(Timeouts)];
        /// The running synchronization daemons, the master first.
        Read Daemons [daemons -> Daemons(Vec<SyncDaemon>)];
        /// The mark rules of `xvs mark`, in the order in which they apply.
        Read Marks [marks -> Marks(Vec<MarkRule>)];
        /// The local addresses of FULLNAT, in the order of the commands.
        Read LocalAddresses [local_addresses -> LocalAddresses(Vec<LocalAddress>)];
        /// The disabled real servers.
        Read Disabled [disabled -> Disabled(DisabledServers)];
        /// The limits of clients, and the clients that they concern most.
        Read Limits {
            /// The most clients.
            clients: u32,
        } [limits -> Limits(LimitReport)];
        /// The access lists of this kind, that of all services first.
        Read Lists(ListKind) [lists -> Lists(Vec<ListRow>)];
        /// The QUIC configurations and server IDs, by service.
        Read Quic [quic -> Quic(Vec<QuicRow>)];
        /// Sets a setting: one that the kernel has as `sysctl net.ipv4.vs.KEY`, one of xvs alone, or `feedback.KEY`.
        Change Set {
            /// The setting's name.
            key: String,
            /// Its new value, as text.
            value: String,
        } [set];
        /// The settings in force, in the order of their keys.
        Read Settings [settings -> Settings(Vec<Setting>)];
        /// Reports the load of a real server.
        Change ReportLoad {
            /// The real server.
            server: Server,
            /// 0 to 100.
            load_percent: f64,
        } [report_load];
        /// Destinations whose weights follow load reports.
        Read Feedback [feedback -> Feedback(Vec<FeedbackRow>)];
    }
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

/// Carries out a step of a take-over. The answer to the first one is the time of systemd's watchdog in milliseconds, if
/// it runs.
pub fn take_over(step: TakeOverStep) -> Question<Option<u64>> {
    Question {
        request: Request::TakeOver(step),
        read: |reply| match reply {
            Reply::Prepares { watchdog_millis } => Ok(watchdog_millis),
            Reply::Done => Ok(None),
            other => Err(Box::new(other)),
        },
    }
}

impl From<ControlRequest> for Request {
    fn from(request: ControlRequest) -> Self {
        Self::Control(request)
    }
}

impl Reply {
    /// The error of a reply that does not belong to the request.
    pub(crate) fn unexpected(&self) -> String {
        let text = format!("{self:?}");
        let start: String = text.chars().take(60).collect();
        format!("xvsd sent a reply that does not belong to the request: {start}")
    }
}

impl Request {
    /// Whether it may be sent twice, because the second does nothing more.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.access() == Access::Read || matches!(self, Self::Reload | Self::ReloadAcceptingLoss)
    }
}

/// A question whose answer is a `T`; asked on the socket as a [`Request`], on the control thread as a
/// [`ControlRequest`].
pub struct Question<T, R = Request> {
    pub(crate) request: R,
    pub(crate) read: fn(Reply) -> Result<T, Box<Reply>>,
}

/// A question that the control thread answers.
pub type ControlQuestion<T> = Question<T, ControlRequest>;

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
        (self.read)(reply).map_err(|other| CommandError::Failed { why: other.unexpected() })
    }
}

/// The running state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningRules {
    /// The rules that create it from an empty state.
    #[serde(rename = "commands")]
    pub rules: Vec<Rule>,
    /// Services owned by health checks, which are not compared with rules.
    #[serde(rename = "governed")]
    pub owned: Vec<ServiceKey>,
    /// The limits of clients that health checks own, which are not compared with rules either.
    #[serde(default)]
    pub owned_limits: Vec<Rule>,
}

#[cfg(any(test, feature = "samples"))]
impl Reply {
    /// The rules of a director with these services, and with what these commands add. For tests alone.
    pub fn rules_of(services: &[ServiceRow], more: impl IntoIterator<Item = Rule>) -> Self {
        let mut rules = Vec::new();
        for row in services {
            rules.push(Rule::Service { key: row.key, options: row.options.clone() });
            // The one added last comes first.
            rules.extend(row.destinations.iter().rev().map(|dest| Rule::Destination {
                service: row.key,
                endpoint: dest.endpoint,
                options: dest.options.clone(),
            }));
        }
        rules.extend(more);
        Self::Rules(RunningRules { rules, owned: Vec::new(), owned_limits: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn requests_of_both_types_have_one_form_and_an_unknown_one_is_refused() {
        for (form, request) in [
            (json!("status"), Request::Status),
            (json!({"stop": {"release": true}}), Request::Stop { release: true }),
            (json!("list_services"), ControlRequest::ListServices.into()),
            (json!({"limits": {"clients": 3}}), ControlRequest::Limits { clients: 3 }.into()),
            (json!({"change": "flush"}), ControlRequest::Change(Command::Flush).into()),
            (json!({"restore": ["flush"]}), ControlRequest::Restore(vec![Command::Flush]).into()),
        ] {
            assert_eq!(to_value(&request).unwrap(), form);
            assert_eq!(from_value::<Request>(form).unwrap(), request);
        }
        for unknown in [json!("nothing"), json!({"stop": {}}), json!({"restore": "flush"}), json!(["status"])]
        {
            assert!(from_value::<Request>(unknown.clone()).is_err(), "{unknown}");
        }
    }
}
