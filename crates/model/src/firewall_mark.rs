//! Mark rules, as `xvs mark` sets them.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use xvs_proto::{Prefix, Protocol};

/// A rule of `xvs mark`: packets that fit everything said get the mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRule {
    /// Where they go.
    pub dest: Option<Prefix>,
    /// Where they come from.
    pub source: Option<Prefix>,
    /// Their protocol.
    pub protocol: Option<Protocol>,
    /// Ports that they go to; any if there are none.
    pub dest_ports: Vec<RangeInclusive<u16>>,
    /// The interface that they come in by; a name that ends in `+` is the beginning of one.
    pub interface: Option<String>,
    /// The mark.
    pub mark: u32,
    /// Which bits of the mark are changed, beside those that are set.
    pub mask: u32,
}

/// The options of `xvs mark` that say it.
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

/// Ports as options take them: `80,8000:8010`.
pub fn ports_text(ports: &[RangeInclusive<u16>]) -> String {
    let one = |range: &RangeInclusive<u16>| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}:{}", range.start(), range.end()),
    };
    ports.iter().map(one).collect::<Vec<_>>().join(",")
}
