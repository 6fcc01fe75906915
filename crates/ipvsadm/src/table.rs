//! Which option may stand with which command: the option matrix, its two checks and their messages.
//!
//! Source: the option table of ipvsadm 1.31, `tests/conformance/cli-table-*` and `cli-order-*`.

use crate::ended::Ended;

/// The commands, named as messages name them.
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

/// The options that the matrix knows, in its order.
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
        COLUMN_NAMES[self as usize]
    }
}

/// The options that a line has had so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen(u64);

impl Seen {
    /// Notes an option; each is taken once.
    pub(super) fn add(&mut self, column: Column) -> Result<(), Ended> {
        if self.has(column) {
            return Err(Ended::usage(format!("multiple '{}' options specified", column.name())));
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
pub(super) fn check_command(command: CommandName, seen: Seen) -> Result<(), Ended> {
    let (name, rules) = COMMANDS[command as usize];
    check(seen, rules, COLUMNS, "command", name)
}

/// Checks the options of a tunnel against its type, one of [`TUNNELS`].
pub(super) fn check_tunnel(tunnel_type: &str, seen: Seen) -> Result<(), Ended> {
    let Some((name, rules)) = TUNNELS.iter().find(|(name, _)| *name == tunnel_type) else { return Ok(()) };
    check(seen, rules, TUNNEL_COLUMNS, "tunnel type", name)
}

/// Whether a command wants an option, takes it, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stance {
    Required,
    Taken,
    Illegal,
}

/// How a command stands to an option.
pub(super) fn stance(command: CommandName, column: Column) -> Stance {
    let place = COLUMNS.iter().position(|known| *known == column);
    match place.and_then(|place| COMMANDS[command as usize].1.as_bytes().get(place).copied()) {
        Some(b'+') => Stance::Required,
        Some(b'x') => Stance::Illegal,
        _ => Stance::Taken,
    }
}

/// Goes through the columns in order and tells the first fault; `kind` and `name` say what the rules belong to.
fn check(seen: Seen, rules: &str, columns: &[Column], kind: &str, name: &str) -> Result<(), Ended> {
    let mut chosen: Option<Column> = None;
    for (column, rule) in columns.iter().zip(rules.bytes()) {
        let option = column.name();
        match (rule, seen.has(*column), chosen) {
            (b'+', false, _) => {
                let text = format!("You need to supply the '{option}' option for the '{name}' {kind}");
                return Err(Ended::usage(text));
            }
            (b'x', true, _) => {
                let text = format!("Illegal '{option}' option with the '{name}' {kind}");
                return Err(Ended::usage(text));
            }
            (b'1', true, Some(first)) => {
                let text = format!(
                    "The option '{option}' conflicts with the '{}' option in the '{name}' {kind}",
                    first.name()
                );
                return Err(Ended::usage(text));
            }
            (b'1', true, None) => chosen = Some(*column),
            _ => {}
        }
    }
    Ok(())
}

/// For each command its name and, for each column: `+` required, `x` illegal, `1` at most one of these, else free.
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

const TUNNELS: [(&str, &str); 3] = [("ipip", "xxxx"), ("gue", "+111"), ("gre", "x11x")];

const TUNNEL_COLUMNS: &[Column] =
    &[Column::TunnelPort, Column::NoChecksum, Column::Checksum, Column::RemoteChecksum];

const COLUMNS: &[Column] = &[
    Column::Numeric,
    Column::Connection,
    Column::Service,
    Column::Scheduler,
    Column::Persistent,
    Column::Netmask,
    Column::RealServer,
    Column::Method,
    Column::Weight,
    Column::Upper,
    Column::Lower,
    Column::Interface,
    Column::Timeout,
    Column::Daemon,
    Column::Stats,
    Column::Rate,
    Column::Thresholds,
    Column::PersistentConn,
    Column::NoSort,
    Column::SyncId,
    Column::Exact,
    Column::OnePacket,
    Column::Engine,
    Column::Flags,
    Column::Group,
    Column::Port,
    Column::Ttl,
    Column::MaxLen,
    Column::TunInfo,
    Column::TunnelType,
    Column::TunnelPort,
    Column::NoChecksum,
    Column::Checksum,
    Column::RemoteChecksum,
];

const COLUMN_NAMES: [&str; 34] = [
    "numeric",
    "connection",
    "service-address",
    "scheduler",
    "persistent",
    "netmask",
    "real-server",
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "mcast-interface",
    "timeout",
    "daemon",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "syncid",
    "exact",
    "ops",
    "pe",
    "sched-flags",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
    "tun-info",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
];
