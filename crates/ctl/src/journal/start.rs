//! The sources with which xvsd begins: the journal of the previous xvsd, the files that have changed since, or only the
//! files.
//!
//! A file that has not changed is not loaded: the journal has later changes. A changed rules file wins for the objects
//! that it defines; objects that it no longer defines are deleted; objects that only commands created stay. The keys
//! that a changed xvs.toml sets win over `xvs set`. An unusable journal is kept under another name, and xvsd begins
//! with its files. `daemon/` in xvsd performs the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use xvs_host::state_directory::Others;
use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::{commands_for, file_differences};
use xvs_model::config::rules::{DesiredRules, RuleLine};
use xvs_model::objects::Rule;
use xvs_model::report::setting::Source;

use crate::journal::format::{Contents, FileRecord, Header, JournalError};
use crate::journal::replay::{Replayed, TimeoutsBySource, rules_without_timeouts};
use crate::journal::{Journal, NAME, REFUSED};

/// The current files with which xvsd is configured.
#[derive(Debug, Default)]
pub struct Files {
    /// The file xvs.toml.
    pub toml: Option<FileRecord>,
    /// The keys that it sets, as `xvs get` names them.
    pub toml_keys: BTreeSet<String>,
    /// The rules file.
    pub rules: Option<FileRecord>,
    /// The lines of the file.
    pub rule_lines: Vec<RuleLine>,
    /// Whether the rules come from etcd: the rules file is then only for a start without a journal, and never wins over
    /// it.
    pub has_fleet: bool,
}

/// The state with which xvsd begins.
#[derive(Debug, Default)]
pub struct Beginning {
    /// The commands to carry out, each with its line in the rules file; `None` if it comes from the journal.
    pub commands: Vec<(Option<usize>, Command)>,
    /// The settings of `xvs set`.
    pub settings: BTreeMap<String, String>,
    /// The timeouts of the journal.
    pub timeouts: TimeoutsBySource,
    /// When the journal was last written, in milliseconds since 1970; `None` if xvsd begins with its files.
    pub saved_at_millis: Option<u64>,
    /// The journal to continue; `None` if no state is kept.
    pub journal: Option<Journal>,
    /// Lines for the log.
    pub said: Vec<String>,
}

impl Beginning {
    /// Begins with the files alone.
    pub fn of_files(files: Files) -> Self {
        Self {
            commands: files.rule_lines.into_iter().map(|line| (Some(line.number), line.command)).collect(),
            ..Self::default()
        }
    }

    /// Begins with the journal in this directory, if there is one. An unusable journal is renamed.
    ///
    /// # Errors
    ///
    /// The journal cannot be used, and another xvsd still writes to it.
    pub fn of_directory(directory: &Path, files: Files, others: Others) -> Result<Self, JournalError> {
        let path = directory.join(NAME);
        let (header, begin) = match Contents::read(&path) {
            Ok(Some(contents)) => Self::of_journal(contents, files),
            Ok(None) => (header_of(&files), Self::of_files(files)),
            Err(why) if others == Others::Run => return Err(why),
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
        Ok(Self { journal: Some(Journal::new(directory, &header)), ..begin })
    }

    /// Begins with a journal that was read, and with the files that have changed since.
    fn of_journal(contents: Contents, files: Files) -> (Header, Self) {
        let Contents { header, entries, is_cut, saved_at_millis } = contents;
        let mut replayed = Replayed::of(&entries);
        let mut said = Vec::new();
        if is_cut {
            said.push("the last line of the journal was cut off when xvsd ended; it is left out".to_owned());
        }
        bounded(&mut said, "the journal", std::mem::take(&mut replayed.refused));
        let taken_back = commands_for(&replayed.taken_back);
        bounded(&mut said, "not confirmed before xvsd ended", taken_back.iter().map(command_line).collect());
        if header.toml != files.toml {
            let mut undone = Vec::new();
            for key in &files.toml_keys {
                if let Some(value) = replayed.settings.remove(key) {
                    undone.push(format!("`xvs set {key} {value}` is undone"));
                }
            }
            bounded(&mut said, "xvs.toml has changed", undone);
        }
        let mut rules_commands = header.rules_commands;
        if header.rules != files.rules && !files.has_fleet {
            let old = state_of_lines(&mut RuleLine::numbered(&rules_commands)).0.state().clone();
            let mut lines = files.rule_lines.clone();
            let (new, faults) = state_of_lines(&mut lines);
            bounded(&mut said, "rules: refused", faults);
            let commands = commands_for(&file_differences(&replayed.state, &old, &new));
            bounded(&mut said, "the rules file has changed", commands.iter().map(command_line).collect());
            for command in &commands {
                match command {
                    // The others keep their sources.
                    Command::Add(Rule::Timeouts(_)) => {
                        replayed.apply(&Command::Add(Rule::Timeouts(new.timeouts())), Source::RulesFile);
                    }
                    command => replayed.apply(command, Source::RulesFile),
                }
            }
            bounded(&mut said, "the rules file has changed", std::mem::take(&mut replayed.refused));
            rules_commands = lines.into_iter().map(|line| line.command).collect();
        }
        let header = match files.has_fleet {
            true => header_of(&files),
            false => Header::new(files.toml, files.rules, rules_commands),
        };
        (
            header,
            Self {
                commands: rules_without_timeouts(&replayed.state).map(|rule| (None, rule.into())).collect(),
                settings: replayed.settings,
                timeouts: replayed.timeouts,
                saved_at_millis: Some(saved_at_millis),
                journal: None,
                said,
            },
        )
    }
}

/// Whether the file's lines are not needed: the journal in this directory was loaded from this rules file, or, with a
/// fleet, only the journal counts.
pub fn has_loaded(directory: &Path, rules: &FileRecord, has_fleet: bool) -> bool {
    Contents::read(&directory.join(NAME))
        .ok()
        .flatten()
        .is_some_and(|contents| has_fleet || contents.header.rules.as_ref() == Some(rules))
}

/// The header of a journal that begins with these files. Rules from etcd come from no file.
fn header_of(files: &Files) -> Header {
    if files.has_fleet {
        return Header::new(files.toml.clone(), None, Vec::new());
    }
    let commands = files.rule_lines.iter().map(|line| line.command.clone()).collect();
    Header::new(files.toml.clone(), files.rules.clone(), commands)
}

/// The rules that these lines request, and the faults of refused lines, which are removed.
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

/// Adds lines for the log, each with its cause, and the number of those beyond the first.
fn bounded(said: &mut Vec<String>, cause: &str, lines: Vec<String>) {
    let more = lines.len().saturating_sub(LINES_MAX);
    said.extend(lines.into_iter().take(LINES_MAX).map(|line| format!("{cause}: {line}")));
    if more > 0 {
        said.push(format!("{cause}: and {more} more"));
    }
}

/// The number of lines with one cause that are logged.
const LINES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::{env, process};

    use xvs_ipvsadm::{SystemResolver, read_rules};

    use crate::journal::format::Entry;
    use crate::journal::start::*;

    fn lines(rules: &str) -> Vec<RuleLine> {
        read_rules(rules, &SystemResolver::default()).unwrap()
    }

    fn commands(rules: &str) -> Vec<Command> {
        lines(rules).into_iter().map(|line| line.command).collect()
    }

    fn files(path: &str, rules: &str, toml: &str) -> Files {
        Files {
            toml: Some(FileRecord::of(Path::new("/etc/xvs/xvs.toml"), toml.as_bytes())),
            toml_keys: ["sloppy_tcp".to_owned(), "workers".to_owned()].into(),
            rules: Some(FileRecord::of(Path::new(path), rules.as_bytes())),
            rule_lines: lines(rules),
            has_fleet: false,
        }
    }

    /// A journal that was loaded from `old`, and contains these changes.
    fn journal(old: &str, changes: &str) -> Contents {
        let entries = commands(old).into_iter().chain(commands(changes)).map(|command| match command {
            Command::Add(Rule::Timeouts(timeouts)) => Entry::Timeouts(timeouts, Source::XvsadmSet),
            command => Entry::Change(command),
        });
        let set = |key: &str| Entry::Set { key: key.to_owned(), value: "1".to_owned() };
        let entries = entries.chain([set("sloppy_tcp"), set("sloppy_sctp")]).collect();
        let header = header_of(&files("r", old, "1"));
        Contents { header, entries, is_cut: false, saved_at_millis: 0 }
    }

    /// The state with which xvsd begins, as rules without the first line about timeouts; and its messages.
    fn begun(contents: Contents, files: Files) -> (String, Vec<String>) {
        let (_, begin) = Beginning::of_journal(contents, files);
        let lines = begin.commands.iter().map(|(_, command)| command_line(command)).collect::<Vec<_>>();
        (lines.join("\n"), begin.said)
    }

    /// The lines that `xvsadm -S` prints for the state of these rules.
    fn saved(rules: &str) -> String {
        let (wanted, _) = state_of_lines(&mut lines(rules));
        rules_without_timeouts(wanted.state())
            .map(|rule| command_line(&rule.into()))
            .collect::<Vec<_>>()
            .join("\n")
    }

    const A: &str = "-A -t 192.0.2.100:80 -s rr\n-a -t 192.0.2.100:80 -r 192.0.2.1 -m\n";
    const B: &str = "-A -t 192.0.2.101:80 -s rr\n";
    const C: &str = "-A -t 192.0.2.102:80 -s rr\n";

    #[test]
    fn the_journal_of_0_2_0_gives_the_rules_and_settings_that_it_was_made_of() {
        let kept = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/kept/0.2.0"));
        let contents = Contents::parse(&fs::read(kept.join("journal")).unwrap(), 0).unwrap();
        let rules = fs::read_to_string(kept.join("rules")).unwrap();
        let (_, begin) = Beginning::of_journal(contents, files("r", "", ""));
        assert_eq!(begin.said, [""; 0]);
        let lines = begin.commands.iter().map(|(_, command)| command_line(command)).collect::<Vec<_>>();
        assert_eq!(lines.join("\n"), saved(&rules));
        let set = ("expire_nodest_conn".to_owned(), "1".to_owned());
        assert_eq!(begin.settings.into_iter().collect::<Vec<_>>(), [set]);
    }

    #[test]
    fn files_that_have_not_changed_are_not_loaded() {
        let old = [A, B].concat();
        let changes = ["-D -t 192.0.2.101:80\n-e -t 192.0.2.100:80 -r 192.0.2.1 -m -w 7\n", C].concat();
        let (state, said) = begun(journal(&old, &changes), files("r", &old, "1"));
        assert_eq!(said, [""; 0]);
        assert_eq!(
            state,
            saved(&["-A -t 192.0.2.100:80 -s rr\n-a -t 192.0.2.100:80 -r 192.0.2.1 -m -w 7\n", C].concat())
        );
    }

    #[test]
    fn a_changed_rules_file_wins_for_what_it_defines_or_defined_and_what_only_commands_made_stays() {
        let old = [A, B, "#xvs disable 192.0.2.9\n"].concat();
        let changes = "-e -t 192.0.2.100:80 -r 192.0.2.1 -m -w 7\n-a -t 192.0.2.100:80 -r 192.0.2.2 -m\n"
            .to_owned()
            + C
            + "#xvs disable 192.0.2.8\n--set 100 0 0\n";
        // B and a disabled server are gone, A has another scheduler, and there is a timeout.
        let new = A.replace("rr", "wrr") + "--set 0 50 0\n";
        let (_, begin) = Beginning::of_journal(journal(&old, &changes), files("r", &new, "1"));
        let timeouts: Vec<_> = begin.timeouts.iter().map(|(_, source)| source).collect();
        assert_eq!(timeouts, [Source::XvsadmSet, Source::RulesFile]);
        let (state, said) = begun(journal(&old, &changes), files("r", &new, "1"));
        let expected = "#xvs disable 192.0.2.8\n".to_owned()
            + &A.replace("rr", "wrr")
            + "-a -t 192.0.2.100:80 -r 192.0.2.2 -m\n"
            + C;
        assert_eq!(state, saved(&expected));
        assert_eq!(said.len(), 5, "{said:#?}");
        assert!(
            said.contains(&"the rules file has changed: xvsadm -D -t 192.0.2.101:80".to_owned()),
            "{said:#?}"
        );
        // Another path counts as another file.
        let (state, said) = begun(journal(&old, &changes), files("other", &old, "1"));
        assert!(state.contains("192.0.2.101") && state.contains("192.0.2.102"), "{state}");
        assert_eq!(said.len(), 1, "the weight is that of the file: {said:?}");
    }

    #[test]
    fn with_rules_of_etcd_the_journal_stays_as_it_is_and_a_file_is_for_a_start_without_one() {
        let none = Files { rules: None, rule_lines: Vec::new(), has_fleet: true, ..files("r", "", "2") };
        let (header, begin) = Beginning::of_journal(journal(&[A, B].concat(), C), none);
        let kept = begin.commands.iter().map(|(_, command)| command_line(command)).collect::<Vec<_>>();
        assert_eq!(kept.join("\n"), saved(&[A, B, C].concat()));
        assert_eq!((header.rules, header.rules_commands), (None, vec![]));
        let other = || Files { has_fleet: true, ..files("r", B, "1") };
        assert_eq!(begun(journal(A, C), other()).0, saved(&[A, C].concat()));
        assert_eq!((header_of(&other()).rules, Beginning::of_files(other()).commands.len()), (None, 1));
    }

    #[test]
    fn mark_rules_of_a_changed_file_are_in_its_order_and_those_of_commands_stay() {
        let mark = |number: u32| format!("#xvs mark add -d 192.0.2.{number} --set-mark {number}\n");
        let (old, by_hand) = (mark(1) + &mark(2) + &mark(3), mark(9));
        let (state, _) = begun(journal(&old, &by_hand), files("r", &(mark(3) + &mark(1)), "1"));
        assert_eq!(state, saved(&(mark(3) + &mark(9) + &mark(1))));
    }

    #[test]
    fn lines_of_a_changed_file_that_are_refused_are_reported_and_the_others_are_in_force() {
        let new = [A, A, C].concat();
        let (state, said) = begun(journal(B, ""), files("r", &new, "1"));
        assert_eq!(state, saved(&[A, C].concat()));
        assert_eq!(
            said.iter().filter(|line| line.starts_with("rules: refused: line ")).count(),
            2,
            "{said:#?}"
        );
        let many: String = (0..60).map(|last| format!("-A -t 192.0.2.{last}:81\n")).collect();
        let (_, said) = begun(journal("", ""), files("r", &many, "1"));
        assert_eq!((said.len(), said[20].as_str()), (21, "the rules file has changed: and 40 more"));
    }

    #[test]
    fn keys_that_a_changed_xvs_toml_sets_win_over_xvs_set() {
        let settings = |toml: &str| {
            let (_, begin) = Beginning::of_journal(journal("", ""), files("r", "", toml));
            (begin.settings.into_keys().collect::<Vec<_>>(), begin.said)
        };
        assert_eq!(settings("1"), (vec!["sloppy_sctp".to_owned(), "sloppy_tcp".to_owned()], vec![]));
        let undone = "xvs.toml has changed: `xvs set sloppy_tcp 1` is undone".to_owned();
        assert_eq!(settings("2"), (vec!["sloppy_sctp".to_owned()], vec![undone]));
    }

    #[test]
    fn a_journal_that_cannot_be_used_is_kept_under_another_name_and_the_files_are_loaded() {
        let directory: PathBuf = env::temp_dir().join(format!("xvs-start-{}", process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        let path = directory.join(NAME);
        let header = "{\"xvs_journal\":1,\"toml\":null,\"rules\":null,\"rules_commands\":[]}\n";
        let bad = [
            ("", "first line"),
            ("{\"xvs_journal\":2,\"more\":0}\n", "version 2"),
            (&format!("{header}{{\"change\":\"no\"}}\n"), "line 2"),
            ("\u{0}\u{1}\n", "line 1"),
        ];
        for (content, why) in bad {
            fs::write(&path, content).unwrap();
            let files = || files("r", A, "1");
            let refused = Beginning::of_directory(&directory, files(), Others::Run).unwrap_err().to_string();
            assert!(refused.contains(why) && path.exists(), "{refused}");
            let begin = Beginning::of_directory(&directory, files(), Others::Ended).unwrap();
            assert!(begin.said.len() == 1 && begin.said[0].contains(why), "{:?}", begin.said);
            assert_eq!((begin.commands.len(), begin.saved_at_millis), (2, None));
            assert_eq!(fs::read_to_string(directory.join(REFUSED)).unwrap(), content);
            assert!(!path.exists());
        }
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        let begin = || Beginning::of_directory(&directory, files("r", A, "1"), Others::Ended).unwrap();
        assert_eq!(begin().said.len(), 1);
        fs::write(&path, header).unwrap();
        let begin = begin();
        assert!(
            begin.saved_at_millis.is_some() && begin.said.len() == 2,
            "the rules file is new: {:?}",
            begin.said
        );
        fs::remove_dir_all(&directory).unwrap();
    }
}
