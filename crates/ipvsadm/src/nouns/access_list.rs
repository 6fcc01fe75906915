//! `xvs deny` and `xvs allow`: entries and files of access lists.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use xvs_model::config::command::Command;
use xvs_model::objects::list_file::ListFile;
use xvs_model::objects::list_key::{ListKey, ListKind};
use xvs_model::objects::listed::{Listed, ListedKey, Until, read_prefix};
use xvs_model::objects::{Object, Rule};
use xvs_proto::Prefix;

use crate::error::LineError;
use crate::nouns::arguments::{ServiceArgument, arguments, parse};
use crate::resolver::Resolver;

/// An entry of an access list as arguments.
#[derive(Debug, Args)]
#[group(skip)]
pub struct EntryArgument {
    #[command(flatten)]
    service: ServiceArgument,
    /// Packets from this network
    #[arg(value_name = "PREFIX", value_parser = read_prefix)]
    prefix: Option<Prefix>,
    /// With TIME: `for` a duration (10m, 1h30m), or `until` a number of seconds since 1970
    #[arg(value_name = "for", value_parser = ["for", "until"], requires = "time")]
    word: Option<String>,
    /// The time: a duration with `for`, seconds since 1970 with `until`
    #[arg(value_name = "TIME")]
    time: Option<String>,
}

impl EntryArgument {
    /// The command that adds the entry.
    ///
    /// # Errors
    /// No network, a wrong time, or the first line of ipvsadm's message about the service.
    pub fn command(&self, kind: ListKind, resolver: &dyn Resolver) -> Result<Command, LineError> {
        let list = ListKey { kind, service: self.service.key(resolver)? };
        let prefix = self.prefix.ok_or_else(|| {
            let name = kind.name();
            LineError::usage(format!(
                "xvs {name} needs a network, or one of its subcommands; `xvs {name} --help`"
            ))
        })?;
        let until = self
            .word
            .as_deref()
            .zip(self.time.as_deref())
            .map(|(word, time)| Until::read(word, time))
            .transpose()
            .map_err(|error| LineError::usage(error.to_string()))?;
        Ok(Command::Add(Rule::Listed(Listed { list, prefix, until })))
    }
}

/// Another change of an access list.
#[derive(Debug, Subcommand)]
pub enum ListChange {
    /// Delete an entry that a command added
    Delete {
        /// Its service.
        #[command(flatten)]
        service: ServiceArgument,
        /// The entry's network
        #[arg(value_name = "PREFIX", value_parser = read_prefix)]
        prefix: Prefix,
    },
    /// Add the networks of a file to the list of a service; replaces the networks of the former file
    File {
        /// Its service.
        #[command(flatten)]
        service: ServiceArgument,
        /// One network a line; read again by `xvs reload`
        path: PathBuf,
    },
    /// Remove the file of a list
    NoFile {
        /// Its service.
        #[command(flatten)]
        service: ServiceArgument,
    },
}

impl ListChange {
    /// The command.
    ///
    /// # Errors
    /// The first line of ipvsadm's message about the service.
    pub fn command(&self, kind: ListKind, resolver: &dyn Resolver) -> Result<Command, LineError> {
        let (Self::Delete { service, .. } | Self::File { service, .. } | Self::NoFile { service }) = self;
        let list = ListKey { kind, service: service.key(resolver)? };
        Ok(match self {
            Self::Delete { prefix, .. } => {
                Command::Delete(Object::Listed(ListedKey { list, prefix: *prefix }))
            }
            Self::File { path, .. } => Command::Add(Rule::ListFile(ListFile { list, path: path.clone() })),
            Self::NoFile { .. } => Command::Delete(Object::ListFile(list)),
        })
    }
}

/// The change that a line requests by its words behind `deny` or `allow`.
pub(crate) fn list_command(
    kind: ListKind,
    words: &[&str],
    resolver: &dyn Resolver,
) -> Result<Command, LineError> {
    if words.first().is_some_and(|word| ["delete", "file", "no-file", "list"].contains(word)) {
        return parse::<ListChange>(kind.name(), words)?.command(kind, resolver);
    }
    arguments::<EntryArgument>(kind.name(), words)?.command(kind, resolver)
}

#[cfg(test)]
mod tests {
    use crate::nouns::access_list::*;
    use crate::resolver::FixedNames;

    #[test]
    fn a_printed_entry_or_file_of_a_list_is_parsed_back_with_and_without_a_service() {
        let names = FixedNames::default();
        let services = ["TCP 198.51.100.1:80", "FWM 7", "FWM 4294967295 IPv6"];
        let services = services.iter().map(|service| Some(service.parse().unwrap())).chain([None]);
        for (service, kind) in
            services.flat_map(|service| [(service, ListKind::Deny), (service, ListKind::Allow)])
        {
            let list = ListKey { kind, service };
            for prefix in ["192.0.2.0/24", "2001:db8::1/128"] {
                let prefix = prefix.parse().unwrap();
                for command in [
                    Command::Add(Rule::Listed(Listed { list, prefix, until: None })),
                    Command::Add(Rule::Listed(Listed {
                        list,
                        prefix,
                        until: Some(Until::At(1_800_000_000)),
                    })),
                    Command::Add(Rule::Listed(Listed { list, prefix, until: Some(Until::In(90)) })),
                    Command::Delete(Object::Listed(ListedKey { list, prefix })),
                    Command::Add(Rule::ListFile(ListFile { list, path: "/etc/xvs/bad".into() })),
                    Command::Delete(Object::ListFile(list)),
                ] {
                    let line = crate::command_line(&command);
                    let words: Vec<_> = line.split(' ').collect();
                    assert_eq!(words[..2], ["xvs", kind.name()]);
                    assert_eq!(list_command(kind, &words[2..], &names), Ok(command), "{line}");
                }
            }
        }
        let command = list_command(ListKind::Deny, &["192.0.2.7", "for", "10m"], &names).unwrap();
        assert_eq!(crate::command_line(&command), "xvs deny 192.0.2.7/32 for 600s");
        for wrong in [
            &[][..],
            &["list"],
            &["192.0.2.1/24"],
            &["::ffff:192.0.2.1"],
            &["192.0.2.1", "for"],
            &["192.0.2.1", "for", "0s"],
            &["192.0.2.1", "until", "tomorrow"],
            &["192.0.2.1", "10m"],
        ] {
            assert!(list_command(ListKind::Deny, wrong, &names).is_err(), "{wrong:?}");
        }
    }
}
