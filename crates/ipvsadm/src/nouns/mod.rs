//! The nouns of `xvs`, which ipvsadm does not have: what is typed for each, and how it is listed.
//!
//! A line of a rules file that begins with `#xvs ` has the arguments of a subcommand such as `xvs mark`. Both programs
//! use the types of this folder, a file for each noun.

use std::error::Error;
use std::io::Write;

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::list_key::ListKind;
use xvs_model::protocol::client::Director;

use crate::error::LineError;
use crate::nouns::arguments::{Arguments, Line, command};
use crate::resolver::Resolver;

pub(crate) mod access_list;
pub(crate) mod arguments;
pub(crate) mod disabled;
pub(crate) mod laddr;
pub(crate) mod limit;
pub(crate) mod mark;
pub(crate) mod note;
pub(crate) mod quic;
pub(crate) mod service;

/// Declares the nouns whose subcommand has changes and `list`. Disabled real servers and access lists have forms of
/// their own.
macro_rules! nouns {
    ($($(#[$about:meta])* $noun:ident($line:ty),)*) => {
        /// The subcommands of xvs for nouns.
        #[derive(Debug, Subcommand)]
        pub enum NounCommand { $($(#[$about])* $noun(Arguments<$line>),)* }

        impl NounCommand {
            /// Carries out a change, or prints the list.
            ///
            /// # Errors
            /// The arguments are wrong, the director refuses the command, or it cannot be reached.
            pub fn run(&self, director: &mut dyn Director, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
                match self { $(Self::$noun(arguments) => arguments.run(director, out),)* }
            }
        }

        /// The change of a line with this subcommand of xvs and these words behind it; `None`: rules files have no
        /// lines of this subcommand.
        pub(crate) fn read_line(
            word: &str,
            words: &[&str],
            resolver: &dyn Resolver,
        ) -> Option<Result<Command, LineError>> {
            Some(match word {
                $(_ if word == <$line>::WORD => command::<$line>(words, resolver),)*
                "disable" => disabled::disable_command(words, resolver),
                "deny" => access_list::list_command(ListKind::Deny, words, resolver),
                "allow" => access_list::list_command(ListKind::Allow, words, resolver),
                _ => return None,
            })
        }
    };
}

nouns! {
    /// Add, delete and list the rules that mark packets for `-f` services
    Mark(mark::MarkChange),
    /// Add, delete and list the local addresses, which `--fullnat` real servers see instead of clients
    Laddr(laddr::LocalAddressChange),
    /// Limit the connections of each client of a service, and list the clients that are refused most
    Limit(limit::LimitChange),
    /// Keep the real server of a QUIC connection when the client changes its address
    Quic(quic::QuicLine),
    /// Set the note of a service, such as its owner, and list the notes
    Note(note::NoteChange),
}
