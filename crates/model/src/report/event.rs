//! Events: changes of the configuration and the network, with their time and origin.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::report::warning::WarningKey;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// The number of the event, from 1 at the start of xvsd.
    pub number: u64,
    /// When it happened, in milliseconds since 1970.
    pub at_millis: u64,
    /// The number of the configuration that was in force then, its epoch.
    pub epoch: u64,
    /// The process that requested the change; `None`: xvsd itself.
    pub by: Option<Requester>,
    /// What it concerns.
    pub kind: Kind,
    /// The command as one would type it, or a sentence.
    pub what: String,
    /// Why the change was refused; `None`: it was made.
    pub refused: Option<String>,
    /// The warning that has begun or ended; `None`: the event concerns none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<WarningKey>,
}

/// A process that requested a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Requester {
    /// The user ID of the process.
    pub uid: u32,
    /// The process ID; 0: it is in another PID namespace.
    pub pid: i32,
    /// The name in the kernel, which the process itself can set; empty if it had ended.
    pub program: String,
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => write!(f, "uid {}, a process of another PID namespace", self.uid),
            pid => write!(f, "uid {}, {} (process {pid})", self.uid, self.program),
        }
    }
}

/// The object of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A command, also a refused one.
    Change,
    /// An interface that went down, disappeared or came back, or has another number of queues.
    Link,
    /// A weight that load reports have changed, or a slow start that has begun.
    Weight,
    /// A real server that came up or went down, or a virtual server that gained or lost its quorum.
    Health,
    /// A warning of `xvs status` that has begun.
    Warning,
    /// A warning of `xvs status` that has ended.
    Over,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The events that a listener requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventQuery {
    /// The first event.
    pub from: Begin,
    /// Whether it continues after the remembered events.
    pub then: Then,
}

/// The first event that a listener receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// The next event.
    Now,
    /// The first of this many last events.
    Last(usize),
    /// The first event since this time, in milliseconds since 1970 (UTC).
    Since(u64),
}

/// Whether a listener continues after the remembered events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Every further event.
    Follow,
    /// None.
    End,
}

/// Consecutive events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventBatch {
    /// The number of events before these that the listener missed because it was too slow.
    pub missed: u64,
    /// At most [`PART`] events.
    pub events: Vec<Event>,
}

impl EventBatch {
    /// Whether there is neither an event nor a gap.
    pub fn is_empty(&self) -> bool {
        self.missed == 0 && self.events.is_empty()
    }
}

/// A time in the unit of events, milliseconds since 1970 (UTC).
pub fn millis_since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The number of remembered events.
pub const KEPT: usize = 1024;

/// The largest number of events in one part of a reply.
pub const PART: usize = 64;
