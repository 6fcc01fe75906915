//! Rules files, which subcommands read, compare and apply.

pub(crate) mod apply;
pub(crate) mod confirm;
pub(crate) mod plan;

use std::error::Error;
use std::path::Path;
use std::{fs, io};

use xvs_ipvsadm::{SystemResolver, read_wanted};
use xvs_model::config::command::Command;
use xvs_model::config::rules::{DesiredRules, Fault};

/// The rules of a file with this text: the commands of its lines, and the state that they describe as a whole.
///
/// # Errors
/// All its faults, a line each.
pub(crate) fn rules(file: &Path, text: &str) -> Result<(Vec<Command>, DesiredRules), Box<dyn Error>> {
    read_wanted(text, &SystemResolver::default()).map_err(|faults| listed(file, &faults).into())
}

/// The text of a file with rules to apply, and the commands of its lines.
///
/// # Errors
/// As of [`rules`]; the file has no rules.
pub(crate) fn to_apply(file: &Path) -> Result<(String, Vec<Command>), Box<dyn Error>> {
    let text = text(file)?;
    let (commands, _) = rules(file, &text)?;
    if commands.is_empty() {
        return Err(format!(
            "{} has no rules, so nothing was changed; to delete all services, write the line -C into it",
            file.display()
        )
        .into());
    }
    Ok((text, commands))
}

pub(crate) fn listed(file: &Path, faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("{}: {fault}", file.display())).collect::<Vec<_>>().join("\n")
}

pub(crate) fn text(file: &Path) -> Result<String, Box<dyn Error>> {
    if file.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(file) }
        .map_err(|error| format!("{}: {error}", file.display()).into())
}
