//! What a `#xvs` line in a `virtual_server` of a keepalived.conf says.

use thiserror::Error;
use xvs_sched::{ClientAddress, ClientLimit, SynProxy};

use crate::grammar::{client_address, syn_proxy};
use crate::xvs_lines::arguments::{Line, XvsLineError, parse};
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

/// Why words are no such line, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServiceLineError {
    /// The value of `syn-proxy` or `client-address`.
    #[error("{0}")]
    Value(&'static str),
    /// The words behind `limit`.
    #[error(transparent)]
    Limit(#[from] XvsLineError),
    /// `limit set` names a service.
    #[error("limit set: the block names the service; leave out its option")]
    NamesService,
    /// `limit delete`.
    #[error("limit delete: a reload without the line `#xvs limit set` ends the limit; remove the line")]
    Deletes,
    /// Other words.
    #[error("behind `#xvs` stands `syn-proxy`, `client-address` or `limit set`, with a value")]
    Unknown,
}

impl ServiceLine {
    /// Reads the words behind `#xvs`: those of a rules file, without the service.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn read(words: &[&str]) -> Result<Self, ServiceLineError> {
        match *words {
            ["syn-proxy", value] => syn_proxy(value).map(Self::SynProxy).map_err(ServiceLineError::Value),
            ["client-address", value] => {
                client_address(value).map(Self::ClientAddress).map_err(ServiceLineError::Value)
            }
            ["limit", ref words @ ..] => {
                let change = parse::<LimitChange>(LimitChange::WORD, words)?;
                if !change.service().words().is_empty() {
                    return Err(ServiceLineError::NamesService);
                }
                change.limit().map(Self::Limit).ok_or(ServiceLineError::Deletes)
            }
            _ => Err(ServiceLineError::Unknown),
        }
    }
}
