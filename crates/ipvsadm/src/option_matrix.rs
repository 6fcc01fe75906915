//! The option matrix: which command takes which option; its two checks and their messages.
//!
//! Source: the option table of ipvsadm 1.31, `tests/conformance/cli-table-*` and `cli-order-*`.

use crate::error::LineError;

/// The commands, in the order of [`COMMANDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandName {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

impl CommandName {
    /// Whether it sets the options of a service.
    pub(super) fn sets_service(self) -> bool {
        matches!(self, Self::AddService | Self::EditService)
    }
}

/// The columns of the matrix, in the order of [`COLUMNS`]. An option of ipvsadm has one, several options may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Numeric,
    Connection,
    Service,
    Scheduler,
    Persistent,
    Netmask,
    RealServer,
    Method,
    Weight,
    Upper,
    Lower,
    Interface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    Engine,
    Flags,
    Group,
    Port,
    Ttl,
    MaxLen,
    TunInfo,
    TunnelType,
    TunnelPort,
    NoChecksum,
    Checksum,
    RemoteChecksum,
}

impl Column {
    fn name(self) -> &'static str {
        COLUMNS[self as usize].1
    }
}

/// The options that a line has given so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen(u64);

impl Seen {
    /// Adds an option; a second one of the same column is an error.
    pub(super) fn add(&mut self, column: Column) -> Result<(), LineError> {
        if self.has(column) {
            return Err(LineError::usage(format!("multiple '{}' options specified", column.name())));
        }
        self.0 |= 1 << column as u32;
        Ok(())
    }

    pub(super) fn has(self, column: Column) -> bool {
        self.0 & 1 << column as u32 != 0
    }

    pub(super) fn any(self, columns: &[Column]) -> bool {
        columns.iter().any(|column| self.has(*column))
    }
}

/// Checks the options of a line against its command.
pub(super) fn check_command(command: CommandName, seen: Seen) -> Result<(), LineError> {
    let (name, rules) = COMMANDS[command as usize];
    check(seen, rules, COLUMNS.iter().map(|(column, _)| *column), "command", name)
}

/// Checks the options of a tunnel against its type, one of [`TUNNELS`].
pub(super) fn check_tunnel(tunnel_type: &str, seen: Seen) -> Result<(), LineError> {
    let Some((name, rules)) = TUNNELS.iter().find(|(name, _)| *name == tunnel_type) else { return Ok(()) };
    check(seen, rules, TUNNEL_COLUMNS.into_iter(), "tunnel type", name)
}

/// Whether a command requires an option, allows it, or refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requirement {
    Required,
    Allowed,
    Illegal,
}

/// Whether a command requires, allows or refuses the options of a column.
pub(super) fn requirement(command: CommandName, column: Column) -> Requirement {
    match COMMANDS[command as usize].1.as_bytes()[column as usize] {
        b'+' => Requirement::Required,
        b'x' => Requirement::Illegal,
        _ => Requirement::Allowed,
    }
}

/// Checks the columns in their order and returns the first error. `name` is the command or tunnel type of the rules;
/// `kind` says which of the two it is.
fn check(
    seen: Seen,
    rules: &str,
    columns: impl Iterator<Item = Column>,
    kind: &str,
    name: &str,
) -> Result<(), LineError> {
    let mut chosen: Option<Column> = None;
    for (column, rule) in columns.zip(rules.bytes()) {
        let option = column.name();
        match (rule, seen.has(column), chosen) {
            (b'+', false, _) => {
                let text = format!("You need to supply the '{option}' option for the '{name}' {kind}");
                return Err(LineError::usage(text));
            }
            (b'x', true, _) => {
                let text = format!("Illegal '{option}' option with the '{name}' {kind}");
                return Err(LineError::usage(text));
            }
            (b'1', true, Some(first)) => {
                let text = format!(
                    "The option '{option}' conflicts with the '{}' option in the '{name}' {kind}",
                    first.name()
                );
                return Err(LineError::usage(text));
            }
            (b'1', true, None) => chosen = Some(column),
            _ => {}
        }
    }
    Ok(())
}

/// Each command's name and a rule for each column: `+` required, `x` illegal, `1` at most one of these, ` ` allowed.
const COMMANDS: [(&str, &str); 14] = [
    ("add-service", "xx+   xxxxxxxxxxxxxxx   xxxxxxxxxx"),
    ("edit-service", "xx+   xxxxxxxxxxxxxxx   xxxxxxxxxx"),
    ("delete-service", "xx+xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("flush", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("list", " 11xxxxxxxxx11       xxxxxxx xxxxx"),
    ("add-server", "xx+xxx+    xxxxxxxxxxxxxxxxxx     "),
    ("delete-server", "xx+xxx+xxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("edit-server", "xx+xxx+    xxxxxxxxxxxxxxxxxx     "),
    ("set", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("start-daemon", "xxxxxxxxxxx xxxxxxx xxxx    xxxxxx"),
    ("stop-daemon", "xxxxxxxxxxxxxxxxxxx xxxxxxxxxxxxxx"),
    ("restore", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("save", " xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("zero", "xx xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
];

/// Each type of `--tun-type`, the default first, and a rule for each of [`TUNNEL_COLUMNS`].
pub(super) const TUNNELS: [(&str, &str); 3] = [("ipip", "xxxx"), ("gue", "+111"), ("gre", "x11x")];

const TUNNEL_COLUMNS: [Column; 4] =
    [Column::TunnelPort, Column::NoChecksum, Column::Checksum, Column::RemoteChecksum];

/// The columns of [`COMMANDS`] with their names in messages.
const COLUMNS: [(Column, &str); 34] = [
    (Column::Numeric, "numeric"),
    (Column::Connection, "connection"),
    (Column::Service, "service-address"),
    (Column::Scheduler, "scheduler"),
    (Column::Persistent, "persistent"),
    (Column::Netmask, "netmask"),
    (Column::RealServer, "real-server"),
    (Column::Method, "forwarding-method"),
    (Column::Weight, "weight"),
    (Column::Upper, "u-threshold"),
    (Column::Lower, "l-threshold"),
    (Column::Interface, "mcast-interface"),
    (Column::Timeout, "timeout"),
    (Column::Daemon, "daemon"),
    (Column::Stats, "stats"),
    (Column::Rate, "rate"),
    (Column::Thresholds, "thresholds"),
    (Column::PersistentConn, "persistent-conn"),
    (Column::NoSort, "nosort"),
    (Column::SyncId, "syncid"),
    (Column::Exact, "exact"),
    (Column::OnePacket, "ops"),
    (Column::Engine, "pe"),
    (Column::Flags, "sched-flags"),
    (Column::Group, "mcast-group"),
    (Column::Port, "mcast-port"),
    (Column::Ttl, "mcast-ttl"),
    (Column::MaxLen, "sync-maxlen"),
    (Column::TunInfo, "tun-info"),
    (Column::TunnelType, "tun-type"),
    (Column::TunnelPort, "tun-port"),
    (Column::NoChecksum, "tun-nocsum"),
    (Column::Checksum, "tun-csum"),
    (Column::RemoteChecksum, "tun-remcsum"),
];
