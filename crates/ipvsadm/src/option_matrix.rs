//! The option matrix: the options that each command accepts; its two checks and their messages.
//!
//! Source: the option table of ipvsadm 1.31, `tests/conformance/cli-table-*` and `cli-order-*`.

use crate::error::LineError;
use crate::options::{self, Column, CommandName};

/// The options that a line has given so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen(u64);

impl Seen {
    /// Adds an option; a second one in the same column is an error.
    pub(super) fn add(&mut self, column: Column) -> Result<(), LineError> {
        if self.has(column) {
            let name = column_name(column as usize);
            return Err(LineError::usage(format!("multiple '{name}' options specified")));
        }
        self.0 |= 1 << column as u32;
        Ok(())
    }

    pub(super) fn has(self, column: Column) -> bool {
        self.has_at(column as usize)
    }

    fn has_at(self, column: usize) -> bool {
        self.0 & 1 << column != 0
    }

    pub(super) fn any(self, columns: &[Column]) -> bool {
        columns.iter().any(|column| self.has(*column))
    }
}

/// Checks the options of a line against its command.
pub(super) fn check_command(command: CommandName, seen: Seen) -> Result<(), LineError> {
    let (name, rules) = COMMANDS[command as usize];
    check(seen, rules.bytes().enumerate(), "command", name)
}

/// Checks the options of a tunnel against its type, one of [`TUNNELS`].
pub(super) fn check_tunnel(tunnel_type: &str, seen: Seen) -> Result<(), LineError> {
    let Some((name, rules)) = TUNNELS.iter().find(|(name, _)| *name == tunnel_type) else { return Ok(()) };
    let columns = TUNNEL_COLUMNS.into_iter().map(|column| column as usize);
    check(seen, columns.zip(rules.bytes()), "tunnel type", name)
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

/// Checks the columns in order, each with its rule, and returns the first error. `name` is the command or tunnel type
/// of the rules; `kind` distinguishes the two.
fn check(
    seen: Seen,
    rules: impl Iterator<Item = (usize, u8)>,
    kind: &str,
    name: &str,
) -> Result<(), LineError> {
    let mut chosen = None;
    for (column, rule) in rules {
        let option = column_name(column);
        match (rule, seen.has_at(column), chosen) {
            (b'+', false, _) => {
                return Err(LineError::usage(format!(
                    "You need to supply the '{option}' option for the '{name}' {kind}"
                )));
            }
            (b'x', true, _) => {
                return Err(LineError::usage(format!("Illegal '{option}' option with the '{name}' {kind}")));
            }
            (b'1', true, Some(first)) => {
                return Err(LineError::usage(format!(
                    "The option '{option}' conflicts with the '{}' option in the '{name}' {kind}",
                    column_name(first)
                )));
            }
            (b'1', true, None) => chosen = Some(column),
            _ => {}
        }
    }
    Ok(())
}

/// The name of a column in messages: that of its option, unless it has several.
fn column_name(column: usize) -> &'static str {
    if column == Column::Service as usize {
        return "service-address";
    }
    if column == Column::Method as usize {
        return "forwarding-method";
    }
    options::all()
        .find(|entry| entry.column.is_some_and(|of| of as usize == column))
        .map_or("", |entry| entry.name)
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
