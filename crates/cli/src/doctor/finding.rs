//! A finding of `xvs doctor`: the checked object, the result, and the command that corrects it.

use std::fmt;

use serde::Serialize;

use crate::output::text::{WIDTH, wrapped};

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was checked, such as `kernel` or `interface`.
    pub check: &'static str,
    /// The checked interface, address, service or director; empty: the machine, or the fleet.
    pub object: String,
    /// What was found.
    pub found: String,
    /// Where it was read; may be empty.
    pub seen: String,
    /// The command that fixes it; `None`: there is none.
    pub mend: Option<Mend>,
}

/// A check, the object that it examined, and the source of the information.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    check: &'static str,
    object: String,
    seen: String,
}

/// The level of a finding, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// All is as it should be.
    Ok,
    /// It works, at least in part, and the operator should check it.
    Warn,
    /// Packets are lost, or will be; or a command of `--apply` failed.
    Fail,
}

/// A command that corrects a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Mend {
    /// The command for a shell, as root.
    pub command: String,
    /// The other machine to run it on; `None`: this one.
    pub on: Option<String>,
}

/// The worst level of findings.
pub(super) fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

impl Finding {
    /// Findings of a check about this object.
    pub(super) fn of(check: &'static str, object: impl ToString) -> Subject {
        Subject { check, object: object.to_string(), seen: String::new() }
    }

    /// Adds the command that corrects it on this machine.
    pub(super) fn mend(self, command: impl ToString) -> Self {
        Self { mend: Some(Mend { command: command.to_string(), on: None }), ..self }
    }

    /// Adds the command that corrects it on another machine.
    pub(super) fn mend_on(self, host: impl ToString, command: impl ToString) -> Self {
        Self { mend: Some(Mend { command: command.to_string(), on: Some(host.to_string()) }), ..self }
    }
}

impl Subject {
    pub(super) fn seen(self, seen: impl ToString) -> Self {
        Self { seen: seen.to_string(), ..self }
    }

    pub(super) fn ok(&self, found: impl ToString) -> Finding {
        self.at(Level::Ok, found)
    }

    pub(super) fn warn(&self, found: impl ToString) -> Finding {
        self.at(Level::Warn, found)
    }

    pub(super) fn fail(&self, found: impl ToString) -> Finding {
        self.at(Level::Fail, found)
    }

    pub(super) fn at(&self, level: Level, found: impl ToString) -> Finding {
        let Self { check, object, seen } = self.clone();
        Finding { level, check, object, found: found.to_string(), seen, mend: None }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// A paragraph of at most 80 columns, unless a word is longer; a command is never wrapped.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = if self.object.is_empty() { String::new() } else { format!(" {}", self.object) };
        let seen = if self.seen.is_empty() { String::new() } else { format!(" [{}]", self.seen) };
        let text = format!("{}{object}: {}{seen}", self.check, self.found);
        f.write_str(&wrapped(&format!("{:<INDENT$}", self.level), &text, INDENT, WIDTH))?;
        match &self.mend {
            Some(Mend { command, on: None }) => writeln!(f, "{:INDENT$}fix: {command}", ""),
            Some(Mend { command, on: Some(host) }) => writeln!(f, "{:INDENT$}fix on {host}: {command}", ""),
            None => Ok(()),
        }
    }
}

const INDENT: usize = 6;

#[cfg(test)]
mod tests {
    use crate::doctor::finding::*;

    #[test]
    fn a_finding_is_a_paragraph_of_80_columns_and_its_command_a_line() {
        let finding = Finding::of("interface", "eth0")
            .seen("netlink")
            .fail(
                "its MTU of 9000 bytes lets in packets that do not fit one frame, and so xvsd does not start",
            )
            .mend("ip link set dev eth0 mtu 3498");
        let expected = "\
fail  interface eth0: its MTU of 9000 bytes lets in packets that do not fit one
      frame, and so xvsd does not start [netlink]
      fix: ip link set dev eth0 mtu 3498
";
        assert_eq!(finding.to_string(), expected);
        let other = Finding::of("kernel", "").ok("Linux 6.18").mend_on("192.0.2.11", "true");
        assert_eq!(other.to_string(), "ok    kernel: Linux 6.18\n      fix on 192.0.2.11: true\n");
    }

    #[test]
    fn the_level_of_findings_is_the_worst_one() {
        let subject = Finding::of("kernel", "");
        let [ok, warn, fail] = [subject.ok(""), subject.warn(""), subject.fail("")];
        assert_eq!(worst(&[]), Level::Ok);
        assert_eq!(worst(&[ok.clone(), warn.clone()]), Level::Warn);
        assert_eq!(worst(&[fail, warn, ok]), Level::Fail);
    }
}
