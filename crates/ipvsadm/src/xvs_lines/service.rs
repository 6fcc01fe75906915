//! What a `#xvs` line in a `virtual_server` of a keepalived.conf says.

use xvs_sched::{ClientAddress, ClientLimit, SynProxy};

use crate::grammar::{client_address, syn_proxy};
use crate::xvs_lines::arguments::{Line, parse};
use crate::xvs_lines::limit::LimitChange;

/// What a `#xvs` line in a `virtual_server` of a keepalived.conf says of its services.
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
    /// Reads the words behind `#xvs`: those of a rules file, without the service.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn read(words: &[&str]) -> Result<Self, String> {
        match *words {
            ["syn-proxy", value] => Ok(Self::SynProxy(syn_proxy(value)?)),
            ["client-address", value] => Ok(Self::ClientAddress(client_address(value)?)),
            ["limit", ref words @ ..] => {
                let change = parse::<LimitChange>(LimitChange::WORD, words)?;
                if !change.service().words().is_empty() {
                    return Err("limit set: the block names the service; leave out its option".to_owned());
                }
                let ended = "limit delete: a reload without the line `#xvs limit set` ends the limit; remove the line";
                change.limit().map(Self::Limit).ok_or(ended.to_owned())
            }
            _ => {
                Err("behind `#xvs` stands `syn-proxy`, `client-address` or `limit set`, with a value"
                    .to_owned())
            }
        }
    }
}
