//! Mark rules of `xvs mark`.

use std::cmp::Ordering;
use std::fmt;
use std::ops::RangeInclusive;
use std::slice;

use serde::{Deserialize, Serialize};
use xvs_proto::{Prefix, Protocol};

use crate::config::refusal::CommandError;
use crate::objects::noun::{Noun, Services};

/// A mark rule: packets that match all its conditions get the mark.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MarkRule {
    /// Network of the destination address.
    pub dest: Option<Prefix>,
    /// Network of the source address.
    pub source: Option<Prefix>,
    /// Protocol.
    pub protocol: Option<Protocol>,
    /// Destination ports; empty: any.
    pub dest_ports: Vec<RangeInclusive<u16>>,
    /// The receiving interface; a name that ends in `+` is a prefix.
    pub interface: Option<String>,
    /// The mark.
    pub mark: u32,
    /// The bits of the mark that are cleared first; the bits of `mark` are set in any case.
    pub mask: u32,
}

/// The rule as options of `xvs mark`.
impl fmt::Display for MarkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dest) = self.dest {
            write!(f, "-d {dest} ")?;
        }
        if let Some(source) = self.source {
            write!(f, "-s {source} ")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, "-p {} ", protocol.to_string().to_lowercase())?;
        }
        if !self.dest_ports.is_empty() {
            write!(f, "--dports {} ", ports_text(&self.dest_ports))?;
        }
        if let Some(interface) = &self.interface {
            write!(f, "-i {interface} ")?;
        }
        write!(f, "--set-mark {}", self.mark)?;
        if self.mask == u32::MAX { Ok(()) } else { write!(f, "/{:#x}", self.mask) }
    }
}

/// In the order of their texts.
impl Ord for MarkRule {
    fn cmp(&self, other: &Self) -> Ordering {
        self.to_string().cmp(&other.to_string())
    }
}

impl PartialOrd for MarkRule {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Noun for MarkRule {
    type Key = Self;
    type All = Vec<Self>;
    const IS_REPLACED: bool = true;

    fn key(&self) -> Self {
        self.clone()
    }

    fn check_add(&self, all: &Vec<Self>, _: &dyn Services) -> Result<(), CommandError> {
        if all.len() >= MARKS_MAX {
            let why =
                format!("there are {MARKS_MAX} mark rules already, the largest number; delete one first");
            return Err(CommandError::invalid(why));
        }
        if all.contains(self) {
            return Err(CommandError::MarkExists(self.to_string()));
        }
        let mut ports = 0;
        for range in &self.dest_ports {
            ports += if range.start() == range.end() { 1 } else { 2 };
        }
        let why = if self.interface.as_deref().is_some_and(|name| !is_interface(name)) {
            format!(
                "mark rule «{self}» names no interface: a name has up to 15 bytes, no blank, slash or colon, and may end \
                 in +; leave -i out for packets from any interface"
            )
        } else if ports > PORTS_MAX {
            format!(
                "mark rule «{self}» has more than {PORTS_MAX} ports, where a range counts as two; add two rules"
            )
        } else {
            return Ok(());
        };
        Err(CommandError::invalid(why))
    }

    fn check_delete(rule: &Self, all: &Vec<Self>) -> Result<(), CommandError> {
        if all.contains(rule) { Ok(()) } else { Err(CommandError::NoSuchMark(rule.to_string())) }
    }

    fn add(&self, all: &mut Vec<Self>) {
        all.push(self.clone());
    }

    fn delete(rule: &Self, all: &mut Vec<Self>) {
        all.retain(|known| known != rule);
    }

    fn each(all: &Vec<Self>) -> impl Iterator<Item = Self> {
        all.iter().cloned()
    }

    fn added(&self) -> String {
        format!("mark add {self}")
    }

    fn deleted(rule: &Self) -> String {
        format!("mark delete {rule}")
    }
}

/// A rule as `--json` prints it.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MarkRow {
    /// The network of the destination address; `None`: any.
    pub dest: Option<Prefix>,
    /// The network of the source address; `None`: any.
    pub source: Option<Prefix>,
    /// The transport protocol; `None`: any.
    pub protocol: Option<Protocol>,
    /// The destination ports, each a port or `FIRST:LAST`; empty: any port.
    pub dports: Vec<String>,
    /// The incoming interface; a name that ends in `+` is a prefix; `None`: any.
    pub interface: Option<String>,
    /// The firewall mark that packets get.
    pub mark: u32,
    /// The bits of the mark that the rule changes.
    pub mask: u32,
}

impl From<&MarkRule> for MarkRow {
    fn from(rule: &MarkRule) -> Self {
        let dports = rule.dest_ports.iter().map(|range| ports_text(slice::from_ref(range)));
        Self {
            dest: rule.dest,
            source: rule.source,
            protocol: rule.protocol,
            dports: dports.collect(),
            interface: rule.interface.clone(),
            mark: rule.mark,
            mask: rule.mask,
        }
    }
}

/// Whether this is a valid name of an interface (kernel `net/core/dev.c`, `dev_valid_name`), or a prefix with `+`, that
/// a rules file can also express.
fn is_interface(name: &str) -> bool {
    let has_barred = name.contains(|c: char| c.is_whitespace() || c == '/' || c == ':');
    (1..=15).contains(&name.len()) && !has_barred && !name.starts_with(['-', '.'])
}

/// The largest number of ports of a mark rule, that of `multiport` (iptables-extensions(8)).
const PORTS_MAX: usize = 15;

/// The largest number of mark rules.
pub(crate) const MARKS_MAX: usize = 1024;

/// Ports in the syntax of `--dports`: `80,8000:8010`.
fn ports_text(ports: &[RangeInclusive<u16>]) -> String {
    ports
        .iter()
        .map(|range| match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{}:{}", range.start(), range.end()),
        })
        .collect::<Vec<_>>()
        .join(",")
}
