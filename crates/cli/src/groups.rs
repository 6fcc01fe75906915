//! The command line of `xvs`: its subcommands in groups, most used first.
//!
//! The help, the manual and the completion have the subcommands in this order.

use clap::{Args, Command, CommandFactory, Parser, Subcommand};
use xvs_ipvsadm::NounCommand;

use crate::Cli;

/// Each group with its heading.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Look at the director",
        &["status", "health", "top", "connections", "explain", "events", "capture", "counters", "healthy"],
    ),
    (
        "Change it",
        &["drain", "disable", "enable", "plan", "apply", "confirm", "reload", "get", "set", "fleet", "stop"],
    ),
    ("Services and clients", &[NOUNS, "deny", "allow", "feedback"]),
    ("Without a director", &["doctor", "check", "import", "realserver", "lab"]),
    ("This program", &["completion", "manual"]),
];

/// In a group: all nouns, in the order of their list.
const NOUNS: &str = "<noun>";

/// The groups with the names of their subcommands.
fn groups() -> impl Iterator<Item = (&'static str, Vec<String>)> {
    let nouns = NounCommand::augment_subcommands(Command::new(NOUNS));
    GROUPS.into_iter().map(move |(heading, names)| {
        let mut all = Vec::new();
        for name in names {
            match *name {
                NOUNS => all.extend(nouns.get_subcommands().map(|noun| noun.get_name().to_owned())),
                name => all.push(name.to_owned()),
            }
        }
        (heading, all)
    })
}

impl Parser for Cli {}

impl CommandFactory for Cli {
    fn command() -> Command {
        let all = Self::augment_args(Command::new("xvs"));
        let mut text = String::new();
        let mut xvs = Command::new("xvs")
            .version(env!("CARGO_PKG_VERSION"))
            .about(all.get_about().cloned().unwrap_or_default())
            .after_help(all.get_after_help().cloned().unwrap_or_default())
            .subcommand_required(true)
            .arg_required_else_help(true);
        for (heading, names) in groups() {
            text += &format!("{heading}:\n");
            for subcommand in names.iter().filter_map(|name| all.find_subcommand(name)) {
                let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
                text += &format!("  {:<12} {about}\n", subcommand.get_name());
                xvs = xvs.subcommand(subcommand.clone());
            }
            text += "\n";
        }
        // Trims the blank lines of clap's text, which belong to no group.
        text.truncate(text.trim_end().len());
        text += "\n  help         Print this message, or the help of a subcommand\n";
        xvs.help_template(format!(
            "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}\nOptions:\n{{options}}{{after-help}}"
        ))
    }

    fn command_for_update() -> Command {
        Self::command()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_subcommand_is_in_one_group_and_the_help_has_all_in_this_order() {
        let grouped: Vec<_> = groups().flat_map(|(_, names)| names).collect();
        let all = Cli::augment_args(Command::new("xvs"));
        let defined: BTreeSet<_> = all.get_subcommands().map(Command::get_name).collect();
        assert_eq!(grouped.iter().map(String::as_str).collect::<BTreeSet<_>>(), defined);
        assert_eq!(grouped.len(), defined.len(), "none is in two groups");
        let help = Cli::command().render_help().to_string();
        let lines = help.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(' '));
        let shown: Vec<_> = lines.map(|(word, _)| word).filter(|word| defined.contains(word)).collect();
        assert_eq!(shown, grouped);
        assert!(help.contains("\n\nServices and clients:\n  mark         Add, delete and list"), "{help}");
    }
}
