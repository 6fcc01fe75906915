//! Mark rules of `xvs mark`.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use xvs_proto::{Prefix, Protocol};

/// A mark rule: packets that match all its conditions get the mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Ports in the syntax of `--dports`: `80,8000:8010`.
pub fn ports_text(ports: &[RangeInclusive<u16>]) -> String {
    let one = |range: &RangeInclusive<u16>| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}:{}", range.start(), range.end()),
    };
    ports.iter().map(one).collect::<Vec<_>>().join(",")
}
