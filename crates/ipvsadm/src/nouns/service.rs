//! The meaning of a `#xvs` line in a `virtual_server` in keepalived.conf.

use xvs_sched::{ClientAddress, ClientLimit, SynProxy};

use crate::error::LineError;
use crate::grammar::{client_address, syn_proxy};
use crate::nouns::arguments::{Line, parse};
use crate::nouns::limit::LimitChange;

/// The setting that a `#xvs` line in a `virtual_server` in keepalived.conf applies to its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceLine {
    /// `syn-proxy auto`
    SynProxy(SynProxy),
    /// `client-address proxy`
    ClientAddress(ClientAddress),
    /// `limit set --rate 50`
    Limit(ClientLimit),
}

impl ServiceLine {
    /// Parses the arguments after `#xvs`: those in a rules file, without the service.
    ///
    /// # Errors
    ///
    /// A message for the operator.
    pub fn read(words: &[&str]) -> Result<Self, LineError> {
        let why = match *words {
            ["syn-proxy", value] => return syn_proxy(value).map(Self::SynProxy).map_err(LineError::usage),
            ["client-address", value] => {
                return client_address(value).map(Self::ClientAddress).map_err(LineError::usage);
            }
            ["limit", ref words @ ..] => {
                let change = parse::<LimitChange>(LimitChange::WORD, words)?;
                match change.limit() {
                    _ if !change.service().words().is_empty() => {
                        "limit set: the block names the service; leave out its option"
                    }
                    Some(limit) => return Ok(Self::Limit(limit)),
                    None => {
                        "limit delete: a reload without the line `#xvs limit set` ends the limit; remove the line"
                    }
                }
            }
            _ => "behind `#xvs` stands `syn-proxy`, `client-address` or `limit set`, with a value",
        };
        Err(LineError::usage(why))
    }
}
