//! Lines of a rules file that begin with `#xvs `: mark rules, local addresses, disabled real servers, limits of
//! clients, access lists and QUIC configurations, which ipvsadm does not have.
//!
//! Such a line has the arguments of `xvs mark`, `xvs laddr`, `xvs disable`, `xvs limit`, `xvs deny`, `xvs allow` or
//! `xvs quic`; both programs use the types of this folder, a file for each noun.

use xvs_model::config::command::Command;
use xvs_model::objects::list_key::ListKind;

use crate::error::LineError;
use crate::resolver::Resolver;
use crate::xvs_lines::arguments::{Line, command};

pub(crate) mod access_list;
pub(crate) mod arguments;
pub(crate) mod disabled;
pub(crate) mod laddr;
pub(crate) mod limit;
pub(crate) mod mark;
pub(crate) mod quic;
pub(crate) mod service;

/// The change of a line with this subcommand of xvs and these words behind it; `None`: rules files have no lines of
/// this subcommand.
pub(crate) fn read_line(
    word: &str,
    words: &[&str],
    resolver: &dyn Resolver,
) -> Option<Result<Command, LineError>> {
    Some(match word {
        mark::MarkChange::WORD => command::<mark::MarkChange>(words, resolver),
        laddr::LocalAddressChange::WORD => command::<laddr::LocalAddressChange>(words, resolver),
        limit::LimitChange::WORD => command::<limit::LimitChange>(words, resolver),
        quic::QuicLine::WORD => command::<quic::QuicLine>(words, resolver),
        "disable" => disabled::disable_command(words, resolver),
        "deny" => access_list::list_command(ListKind::Deny, words, resolver),
        "allow" => access_list::list_command(ListKind::Allow, words, resolver),
        _ => return None,
    })
}
