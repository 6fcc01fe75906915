//! `xvs note`: notes at services.

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::note::ServiceNote;
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;

use crate::error::LineError;
use crate::nouns::arguments::{Line, NoOptions, ServiceArgument};
use crate::resolver::Resolver;

/// A change of the notes.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would take a sentence about the service's options as one about the subcommand"
)]
pub enum NoteChange {
    /// Set the note of a service; it replaces the former note
    Set {
        #[command(flatten)]
        service: ServiceArgument,
        /// The note, up to 200 bytes
        #[arg(required = true, trailing_var_arg = true)]
        text: Vec<String>,
    },
    /// Delete the note of a service
    Delete {
        #[command(flatten)]
        service: ServiceArgument,
    },
}

impl Line for NoteChange {
    const WORD: &str = "note";
    type Options = NoOptions;
    type Report = Vec<ServiceNote>;
    const HELP: &str = "Show the notes, in the order of their services";

    fn command(&self, resolver: &dyn Resolver) -> Result<Command, LineError> {
        let (Self::Set { service, .. } | Self::Delete { service }) = self;
        let service = service.required(Self::WORD, "-t, -u, --sctp-service or -f", resolver)?;
        Ok(match self {
            Self::Delete { .. } => Command::Delete(Object::Note(service)),
            Self::Set { text, .. } => {
                // A rules file has its words one blank apart.
                let text = text.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
                Command::Add(Rule::Note(ServiceNote { service, text }))
            }
        })
    }

    fn report(_: &NoOptions, director: &mut dyn Director) -> Result<Vec<ServiceNote>, Failure> {
        let mut notes = Vec::new();
        for rule in question::rules().ask(director)?.rules {
            if let Rule::Note(note) = rule {
                notes.push(note);
            }
        }
        Ok(notes)
    }

    fn screen(notes: &Vec<ServiceNote>) -> String {
        if notes.is_empty() {
            return "no notes; `xvs note set --help` says how to write one\n".to_owned();
        }
        notes
            .iter()
            .map(|ServiceNote { service, text }| format!("{:<40} {text}\n", service.to_string()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::nouns::arguments::command;
    use crate::nouns::note::*;
    use crate::resolver::FixedNames;

    #[test]
    fn a_note_is_read_back_as_it_is_written_whatever_its_words_are() {
        let service = "TCP 198.51.100.1:80".parse().unwrap();
        for text in ["shop of ACME", "see -t and ipvsadm", "it's \"quoted\" # 50 % — ü", "x -- -6"] {
            let note = ServiceNote { service, text: text.to_owned() };
            let line = format!("set -t 198.51.100.1:80 {text}");
            let words: Vec<_> = line.split(' ').collect();
            let read = command::<NoteChange>(&words, &FixedNames::default());
            assert_eq!(read, Ok(Command::Add(Rule::Note(note))), "{text}");
        }
    }

    #[test]
    fn the_listing_has_a_line_for_each_note() {
        let note = |service: &str, text: &str| ServiceNote {
            service: service.parse().unwrap(),
            text: text.to_owned(),
        };
        let notes = vec![note("TCP 198.51.100.1:80", "shop"), note("FWM 7", "call Anna first")];
        let expected = "\
TCP 198.51.100.1:80                      shop
FWM 7                                    call Anna first
";
        assert_eq!(NoteChange::screen(&notes), expected);
    }
}
