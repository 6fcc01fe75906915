//! `xvs reload`: reloads the xvs.toml and keepalived.conf files of xvsd.
//!
//! It does not load the rules file, as `xvs apply` does, but reports if the rules in force differ from it.

use std::io::Write;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::status::rules_not_in_force;

/// The arguments of `xvs reload`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Reload even if a fault in keepalived.conf deletes services that are in force
    #[arg(long)]
    accept_loss: bool,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let changes = match arguments.accept_loss {
        true => question::reload_accepting_loss(),
        false => question::reload(),
    }
    .ask(director)?;
    writeln!(out, "{changes}")?;
    if changes.contains("by a successor") {
        director.await_successor()?;
    }
    // The reload has succeeded, also if no report comes.
    let rules = question::status().ask(director).ok().and_then(|report| report.rules);
    if let Some(difference) = rules.as_ref().and_then(rules_not_in_force) {
        writeln!(out, "rules: {difference}")?;
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use std::io;

    use xvs_model::protocol::client::Failure;
    use xvs_model::protocol::question::{Reply, Request};
    use xvs_model::report::connection::ConnectionRow;
    use xvs_model::report::status::{RulesFound, RulesStatus, StatusReport};
    use xvs_model::sample;

    use crate::reload::*;

    /// A daemon that has nothing to reload, with this difference from its rules file.
    struct Daemon(RulesFound);

    impl Director for Daemon {
        fn call(&mut self, request: Request) -> Result<Reply, Failure> {
            Ok(match request {
                Request::Reload => Reply::Reloaded("no change".to_owned()),
                _ => {
                    let rules = RulesStatus { file: "/etc/xvs/rules".to_owned(), found: self.0.clone() };
                    Reply::Status(Box::new(StatusReport { rules: Some(rules), ..sample::status() }))
                }
            })
        }

        fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
            Ok(())
        }
    }

    #[test]
    fn a_changed_rules_file_is_named_because_a_reload_does_not_load_it() {
        let reload = |found| {
            let mut out = Vec::new();
            assert_eq!(run(&Arguments { accept_loss: false }, &mut Daemon(found), &mut out).unwrap(), DONE);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(reload(RulesFound::Differences(0)), "no change\n");
        let changed = "no change\nrules: 2 differences from /etc/xvs/rules; see `xvs plan /etc/xvs/rules`\n";
        assert_eq!(reload(RulesFound::Differences(2)), changed);
    }
}
