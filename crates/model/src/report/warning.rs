//! A warning of `xvs status`: its kind, its object, and the sentence for the operator.
//!
//! Kind and object are the key of a warning. While the key is there, it is the same warning, also if a number in its
//! sentence changes. Not here: the reasons for warnings, which are beside what they concern in `xvsd` and `ctl`.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Warning {
    /// Its kind and its object.
    #[serde(flatten)]
    pub key: WarningKey,
    /// The sentence: the object, what is wrong, the next step.
    pub text: String,
}

/// The kind of a warning and its object, by which warnings are compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WarningKey {
    /// Its kind, one for each cause: see «Kinds of warnings».
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub kind: WarningKind,
    /// What it is about, such as a service, `SERVICE REAL-SERVER`, an interface or a file; empty: the director, or the
    /// number of further warnings of the kind.
    pub object: String,
}

impl Warning {
    /// A warning about this object; an empty one is the director, or the number of further warnings of the kind.
    pub fn new(kind: WarningKind, object: impl Display, text: impl Into<String>) -> Self {
        Self { key: WarningKey { kind, object: object.to_string() }, text: text.into() }
    }
}

#[cfg(any(test, feature = "samples"))]
impl Warning {
    /// A sample, as those of `sample.rs`.
    pub(crate) fn sample() -> Self {
        let text = "wan is gone; it is attached again when it is back and up";
        Self::new(WarningKind::InterfaceGone, "wan", text)
    }
}

impl Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The sentences of warnings.
pub fn texts<'w>(warnings: impl IntoIterator<Item = &'w Warning>) -> Vec<String> {
    warnings.into_iter().map(Warning::to_string).collect()
}

/// The kind of a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// An interface is down or has no carrier.
    InterfaceDown,
    /// An interface does not exist any more.
    InterfaceGone,
    /// An interface works in generic XDP, because native XDP was refused.
    GenericMode,
    /// Clients come in by an interface that is not attached.
    ClientsNotAttached,
    /// The route to real servers is by an interface that is not attached.
    ServersNotAttached,
    /// Packets had no route, and the default route is by an interface that is not attached.
    DefaultRouteNotAttached,
    /// keepalived.conf was refused when it was last read.
    KeepalivedRefused,
    /// A virtual server has no quorum.
    NoQuorum,
    /// A service has no real server that can take a connection.
    NoUsableServer,
    /// A real server gets no connections and keeps its share of a hash, whose clients are refused.
    HashShareRefused,
    /// A real server gets clients and cannot be reached.
    ServerUnreachable,
    /// A check cannot run, so its real server stays as it is.
    CheckCannotRun,
    /// An agent demands more weight than it can get.
    AgentExcess,
    /// A real server is down.
    ServerDown,
    /// Statements of keepalived.conf are not in force.
    KeepalivedFaults,
    /// A service has FULLNAT real servers, and there is no local address of their family.
    NoLocalAddress,
    /// A local address of FULLNAT is on no interface.
    LocalAddressMissing,
    /// A real server has no route in the VRF of the virtual address.
    VrfRoute,
    /// A real server answers no client.
    ServerUnanswered,
    /// A real server's answers to clients in its own network do not pass the director (NAT).
    NeighboursUnanswered,
    /// A real server replies much later than the others of its service.
    ServerSlow,
    /// A service has one-packet scheduling and masqueraded real servers, whose replies are not translated.
    OnePacketNat,
    /// A firewall mark has a service, and no rule gives it.
    MarkWithoutRule,
    /// Real servers are not told the client's address that they should be told.
    ClientAddress,
    /// The connection table is more than 80 % full.
    TableFull,
    /// A worker was busy 90 % of the time.
    WorkerBusy,
    /// Valid packets were dropped in the last minute; the object is the reason.
    Drops,
    /// A card lost packets, because no frame was free or the machine was too slow.
    CardMissed,
    /// A card lost packets because of their length.
    CardLength,
    /// An interface has queues for fewer workers than configured.
    FewerWorkers,
    /// An XDP program is not pinned, so nothing holds packets of services when xvsd ends.
    ProgramNotPinned,
    /// The full connection table is larger than the memory limit.
    MemoryLimit,
    /// The state directory cannot be used, so a restart loses all connections.
    StateDirectory,
    /// The connection table of an earlier xvsd was refused.
    TableRefused,
    /// An entry of the state directory was no file of xvsd, and has another name now.
    FileSetAside,
    /// No connection is offloaded, although the configuration wants it.
    Offload,
    /// The helper process has ended.
    Helper,
    /// The workers' sockets do not fit the settings of an interface.
    SocketSettings,
    /// An attached interface is of a kind, or has become a member, through which xvs cannot send.
    InterfaceUnusable,
    /// An attached interface has left its bond.
    BondLeft,
    /// A bond has no active member.
    BondInactive,
    /// A policy rule or route of the kernel is not followed.
    RoutingNotFollowed,
    /// The kernel's mark rules cannot be read by a program.
    MarkRulesUnread,
    /// An interface that is back, or has joined a bond, cannot be attached.
    AttachFailed,
    /// The workers have no sockets, because they cannot be opened.
    WorkersPaused,
    /// A worker has not taken up a change within a second.
    WorkerLate,
    /// The journal cannot be written.
    JournalWrite,
    /// Totals and numbers of real servers are not saved.
    NumbersNotSaved,
    /// A daemon of synchronization does not run, and is tried again.
    SyncDaemonWaits,
    /// Workers drop what access lists forbid, because the XDP program cannot.
    ListsInWorkers,
    /// The file of an access list has had a fault since the start.
    ListFile,
    /// The key file of QUIC configurations has a fault.
    QuicKey,
    /// A QUIC server ID chooses no real server.
    QuicServerId,
    /// A command of keepalived.conf was refused.
    KeepalivedCommandRefused,
    /// Services of keepalived.conf were changed by hand.
    KeepalivedDrift,
    /// A daemon of synchronization has failed.
    SyncDaemonFailed,
    /// A daemon of synchronization sends no connection tables.
    SyncTables,
    /// A message of another director was refused in the last minute.
    SyncMessageRefused,
    /// Messages of synchronization are not signed.
    SyncUnsigned,
    /// A system call was refused to a thread of xvsd.
    SystemCallRefused,
    /// A mark rule of the kernel is not followed.
    MarkRuleNotFollowed,
    /// A mark rule of the kernel and all after it are not followed, because there are too many.
    MarkRulesCutOff,
    /// A chain that marks packets is not followed.
    MarkChainNotFollowed,
    /// The kernel's order of two chains that mark packets is unknown.
    MarkChainOrder,
    /// Local ports of FULLNAT could not be reserved.
    PortsNotReserved,
    /// Packets of this machine itself cannot be redirected.
    OwnPackets,
    /// Packets of an interface are copied, although its mode is zero-copy.
    NotZeroCopy,
    /// Workers cannot drive network drivers themselves, so interrupts do.
    BusyPolling,
    /// The interrupts of an interface cannot be deferred.
    InterruptsNotDeferred,
    /// etcd does not answer.
    EtcdSilent,
    /// etcd has no rules for the fleet.
    FleetRulesMissing,
    /// The rules in etcd are refused; the object is their revision.
    FleetRulesRefused,
    /// New rules in etcd wait, because others wait to be confirmed.
    FleetRulesWait,
    /// etcd was restored from a backup, or is another one.
    FleetRolledBack,
    /// Another director of the fleet has the same name.
    FleetNameTaken,
    /// The record of this director in etcd is not written.
    FleetRecordUnwritten,
    /// The thread that follows the rules in etcd has ended.
    FleetThreadEnded,
    /// The log on stderr cannot be written.
    LogWrite,
    /// The connection log cannot be written or sent.
    ConnectionLog,
    /// The rules of the kernel's IPVS cannot be read, so the last ones stay in force.
    KernelRulesUnread,
    /// A service or a setting of the kernel's IPVS is not followed, and stays the kernel's.
    KernelNotFollowed,
    /// A kind that only a newer xvsd has.
    #[serde(other)]
    Unknown,
}

impl Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_kind_from_a_newer_daemon_is_read_with_its_object_and_text() {
        let newer = json!({ "kind": "a_kind_of_tomorrow", "object": "wan", "text": "wan is odd", "more": 1 });
        let warning: Warning = serde_json::from_value(newer).unwrap();
        assert_eq!(warning, Warning::new(WarningKind::Unknown, "wan", "wan is odd"));
        let known = json!({ "kind": "generic_mode", "object": "wan", "text": "slow" });
        assert_eq!(json!(Warning::new(WarningKind::GenericMode, "wan", "slow")), known);
    }
}
