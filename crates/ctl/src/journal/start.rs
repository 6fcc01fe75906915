//! What xvsd begins with: the journal of the xvsd before it, the files that have changed since, or the files alone.
//!
//! A file that has not changed is not loaded: the journal has later changes. If the rules file has changed, it wins for
//! what it defines; what it defined before and does not any more is deleted; what only commands made stays. The keys that
//! a changed xvs.toml sets win over `xvs set`. A journal that cannot be used is kept under another name, and xvsd begins
//! with its files. Not here: carrying it out (`daemon/mod.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::{commands_for, file_differences};
use xvs_model::config::rules::{DesiredRules, RuleLine};
use xvs_model::report::setting::Source;

use crate::journal::format::{Contents, FileRecord, Header};
use crate::journal::replay::{Replayed, TimeoutsBySource, commands_without_timeouts};
use crate::journal::{Journal, NAME, REFUSED};

/// The files that xvsd is configured with, as they are now.
#[derive(Debug, Default)]
pub struct Files {
    /// The file xvs.toml.
    pub toml: Option<FileRecord>,
    /// The keys that it sets, as `xvs get` names them.
    pub toml_keys: BTreeSet<String>,
    /// The rules file.
    pub rules: Option<FileRecord>,
    /// Its lines.
    pub rule_lines: Vec<RuleLine>,
}

/// What xvsd begins with.
#[derive(Debug, Default)]
pub struct Beginning {
    /// The commands to carry out, each with its line of the rules file; `None`: it is from the journal.
    pub commands: Vec<(Option<usize>, Command)>,
    /// The settings of `xvs set`.
    pub settings: BTreeMap<String, String>,
    /// The timeouts of the journal.
    pub timeouts: TimeoutsBySource,
    /// When the journal was last written; `None`: xvsd begins with its files.
    pub saved_at: Option<SystemTime>,
    /// The journal to continue; `None`: no state is kept.
    pub journal: Option<Journal>,
    /// Lines for the log.
    pub said: Vec<String>,
}

impl Beginning {
    /// With the files alone.
    pub fn of_files(files: Files) -> Self {
        let commands = files.rule_lines.into_iter().map(|line| (Some(line.number), line.command)).collect();
        Self { commands, ..Self::default() }
    }

    /// With the journal in this directory, if there is one. A journal that cannot be used gets another name.
    pub fn of_directory(directory: &Path, files: Files) -> Self {
        let path = directory.join(NAME);
        let (header, begin) = match Contents::read(&path) {
            Ok(Some(contents)) => Self::of_journal(contents, files),
            Ok(None) => (header_of(&files), Self::of_files(files)),
            Err(why) => {
                let kept = directory.join(REFUSED);
                let renamed = match fs::rename(&path, &kept) {
                    Ok(()) => format!("it is kept as {}", kept.display()),
                    Err(error) => format!("it is replaced, as it cannot be renamed: {error}"),
                };
                let said = format!(
                    "{}: {why}; {renamed}, and xvsd begins with its files; `xvsadm -R` restores rules that you have saved",
                    path.display()
                );
                (header_of(&files), Self { said: vec![said], ..Self::of_files(files) })
            }
        };
        Self { journal: Some(Journal::new(directory, &header)), ..begin }
    }

    /// With a journal that was read, and with the files that have changed since.
    fn of_journal(contents: Contents, files: Files) -> (Header, Self) {
        let Contents { header, entries, is_cut, saved_at } = contents;
        let mut replayed = Replayed::of(&entries);
        let mut said = Vec::new();
        if is_cut {
            said.push("the last line of the journal was cut off when xvsd ended; it is left out".to_owned());
        }
        bounded(&mut said, "the journal", std::mem::take(&mut replayed.refused));
        let taken_back = commands_for(&replayed.taken_back);
        bounded(&mut said, "not confirmed before xvsd ended", taken_back.iter().map(command_line).collect());
        if header.toml != files.toml {
            let overridden: Vec<_> =
                files.toml_keys.iter().filter_map(|key| Some((key, replayed.settings.remove(key)?))).collect();
            let lines = overridden.into_iter().map(|(key, value)| format!("`xvs set {key} {value}` is undone"));
            bounded(&mut said, "xvs.toml has changed", lines.collect());
        }
        let mut rules_commands = header.rules_commands;
        if header.rules != files.rules {
            let old = state_of_lines(&mut numbered(&rules_commands)).0.state().clone();
            let mut lines = files.rule_lines;
            let (new, faults) = state_of_lines(&mut lines);
            bounded(&mut said, "rules", faults);
            let commands = commands_for(&file_differences(&replayed.state, &old, &new));
            let shown = commands.iter().map(command_line).collect();
            bounded(&mut said, "the rules file has changed", shown);
            commands.iter().for_each(|command| replayed.apply(command, Source::RulesFile));
            bounded(&mut said, "the rules file has changed", std::mem::take(&mut replayed.refused));
            rules_commands = lines.into_iter().map(|line| line.command).collect();
        }
        let header = Header::new(files.toml, files.rules, rules_commands);
        let Replayed { state, timeouts, settings, .. } = replayed;
        let commands = commands_without_timeouts(&state).map(|command| (None, command)).collect();
        (header, Self { commands, settings, timeouts, saved_at: Some(saved_at), journal: None, said })
    }
}

/// Whether the journal in this directory was loaded from this rules file, so that its lines are not needed.
pub fn has_loaded(directory: &Path, rules: &FileRecord) -> bool {
    let contents = Contents::read(&directory.join(NAME)).ok().flatten();
    contents.is_some_and(|contents| contents.header.rules.as_ref() == Some(rules))
}

fn header_of(files: &Files) -> Header {
    let commands = files.rule_lines.iter().map(|line| line.command.clone()).collect();
    Header::new(files.toml.clone(), files.rules.clone(), commands)
}

/// The rules that these lines want, and the faults of those that are refused, which are removed.
fn state_of_lines(lines: &mut Vec<RuleLine>) -> (DesiredRules, Vec<String>) {
    let faults = match DesiredRules::of(lines) {
        Ok(rules) => return (rules, Vec::new()),
        Err(faults) => faults,
    };
    let refused: BTreeSet<_> = faults.iter().map(|fault| fault.line).collect();
    lines.retain(|line| !refused.contains(&line.number));
    // A refused line has changed nothing, so the others are accepted.
    let rules = DesiredRules::of(lines).unwrap_or_else(|_| State::default().into());
    (rules, faults.iter().map(ToString::to_string).collect())
}

fn numbered(commands: &[Command]) -> Vec<RuleLine> {
    (1..).zip(commands.iter().cloned()).map(|(number, command)| RuleLine { number, command }).collect()
}

/// Adds lines for the log, each with its cause, and the number of those beyond the first.
fn bounded(said: &mut Vec<String>, cause: &str, lines: Vec<String>) {
    let more = lines.len().saturating_sub(LINES_MAX);
    said.extend(lines.into_iter().take(LINES_MAX).map(|line| format!("{cause}: {line}")));
    if more > 0 {
        said.push(format!("{cause}: and {more} more"));
    }
}

/// The number of lines of one cause that are logged.
const LINES_MAX: usize = 20;
