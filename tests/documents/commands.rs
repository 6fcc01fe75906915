//! Command lines, rules and configurations in the blocks of code of README.md and docs/: xvs understands each.
//!
//! A line of commands begins with `xvs`, `xvsd` or `xvsadm`, also after the prompt `# `; behind ` #` is a comment.
//! Lines that begin with `-` and a letter, or with `#xvs`, are rules, a file for each run of them. A block that begins
//! with a table or a key is an xvs.toml. Not here: what a command does; commands within a paragraph.

use std::fs;
use std::io;
use std::path::Path;

use clap::Parser;
use clap::error::ErrorKind;
use xvs::document::{Block, blocks};
use xvs_cli::Cli;
use xvs_ctl::arguments::Arguments;
use xvs_ctl::config::Config;
use xvs_ipvsadm::{SystemResolver, output, read_wanted};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::report::connection::ConnectionRow;

use super::pages::{documents, read};

/// What stands for a value, and one that it may have.
const PLACEHOLDERS: [(&str, &str); 1] = [("$program", "xvs")];

/// Lines that only look like commands, with the reason.
const NO_COMMANDS: [(&str, &str); 1] =
    [("xvs fleet apply FILE ──► xvsd ──► etcd ", "it is part of a drawing")];

/// A director that answers nothing, and knows whether it was asked.
#[derive(Default)]
struct Asked(bool);

impl Asked {
    fn refusal(&mut self) -> Failure {
        self.0 = true;
        Failure::Transport("it answers nothing".to_owned())
    }
}

impl Director for Asked {
    fn call(&mut self, _: Request) -> Result<Reply, Failure> {
        Err(self.refusal())
    }

    fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        Err(self.refusal())
    }
}

/// The commands of a line of sh, in words; nothing of comments and redirections.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut quote = None;
    let mut word = String::new();
    for letter in line.split(" #").next().unwrap_or_default().chars().chain([' ']) {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            (_, Some(_)) => word.push(letter),
            ('"' | '\'', None) => quote = Some(letter),
            (' ', None) if word.is_empty() => {}
            (' ', None) => match std::mem::take(&mut word) {
                end if ["&&", "|", "&", ";"].contains(&end.as_str()) => commands.push(Vec::new()),
                other => {
                    let known = PLACEHOLDERS.iter().find(|(name, _)| *name == other);
                    let filled = known.map_or(other, |(_, value)| (*value).to_owned());
                    commands.last_mut().expect("there is a first").push(filled);
                }
            },
            _ => word.push(letter),
        }
    }
    for command in &mut commands {
        let is_redirection = |word: &String| word.starts_with(['<', '>']);
        command.truncate(command.iter().position(is_redirection).unwrap_or(command.len()));
    }
    commands
}

/// Why a command is wrong; `None` also if it is none of xvs.
fn fault(words: &[String]) -> Option<String> {
    let wrong = |error: clap::Error| {
        let is_wrong = !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        is_wrong.then(|| error.to_string())
    };
    match words.first()?.as_str() {
        "xvs" => Cli::try_parse_from(words).err().and_then(wrong),
        "xvsd" => Arguments::try_parse_from(words).err().and_then(wrong),
        "xvsadm" => {
            let mut director = Asked::default();
            let said = output(words, "", &mut director, &SystemResolver::default());
            (said.exit != 0 && !director.0).then_some(said.stderr)
        }
        _ => None,
    }
}

/// The command lines of a block, each with its number.
fn command_lines<'a>(block: &Block<'a>) -> Vec<(usize, &'a str)> {
    let is_command = |line: &str| ["xvs ", "xvsd ", "xvsadm "].iter().any(|name| line.starts_with(name));
    let is_other = |line: &str| NO_COMMANDS.iter().any(|(start, _)| line.starts_with(start));
    let lines = block.lines.iter().zip(block.number..);
    let bare = lines.map(|(line, number)| (number, line.trim_start().trim_start_matches("# ")));
    bare.filter(|(_, line)| is_command(line) && !is_other(line)).collect()
}

/// The runs of rules of a block, each with the number of its first line.
fn rules(block: &Block<'_>) -> Vec<(usize, String)> {
    let is_rule = |line: &str| {
        let mut letters = line.trim_start_matches('-').chars();
        line.starts_with("#xvs ")
            || line.starts_with('-') && letters.next().is_some_and(|one| one.is_ascii_alphabetic())
    };
    let mut runs = Vec::new();
    let mut was_rule = false;
    for (line, number) in block.lines.iter().zip(block.number..) {
        if is_rule(line) {
            if !was_rule {
                runs.push((number, String::new()));
            }
            let (_, run) = runs.last_mut().expect("one was begun");
            *run += &format!("{line}\n");
        }
        was_rule = is_rule(line);
    }
    runs
}

/// Whether a block is an xvs.toml: its first line, but for comments, is a table or a key.
fn is_configuration(block: &Block<'_>) -> bool {
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|one| one.is_ascii_lowercase() || ['_', '.'].contains(&one))
    };
    let table = |line: &str| line.strip_prefix('[')?.split_once(']').map(|(name, _)| name.to_owned());
    let first = block.lines.iter().find(|line| !line.starts_with('#') && !line.is_empty());
    first.is_some_and(|line| {
        let key = line.split_once(" = ").map(|(name, _)| name.to_owned());
        let name = table(line).or(key).unwrap_or_default();
        is_name(name.split('.').next().unwrap_or_default())
    })
}

/// README.md and the pages, each with its text.
fn texts() -> impl Iterator<Item = (String, String)> {
    let named = documents().into_iter().filter(|name| name == "README.md" || name.starts_with("docs/"));
    named.map(|name| (name.clone(), read(&name)))
}

#[test]
fn every_command_line_of_the_documents_is_one_of_the_programs() {
    let mut faults = Vec::new();
    let mut count = 0;
    for (name, text) in texts() {
        for (number, line) in blocks(&text).iter().flat_map(command_lines) {
            count += 1;
            let found = commands(line).into_iter().filter_map(|words| fault(&words));
            faults.extend(found.map(|fault| format!("{name}:{number}: `{line}`: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count > 100, "the documents' form has changed: {count} command lines");
}

#[test]
fn every_rule_of_the_documents_stands_in_rules_without_a_fault() {
    let mut faults = Vec::new();
    let mut count = 0;
    for (name, text) in texts() {
        for (number, rules) in blocks(&text).iter().flat_map(rules) {
            count += 1;
            let found = read_wanted(&rules, &SystemResolver::default()).err().unwrap_or_default();
            faults.extend(found.into_iter().map(|fault| format!("{name}:{number}: {fault}\n{rules}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count >= 3, "the documents' form has changed: {count} runs of rules");
}

#[test]
fn every_configuration_of_the_documents_is_one_of_xvsd() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("documents-commands.toml");
    let mut faults = Vec::new();
    let mut count = 0;
    for (name, text) in texts() {
        for block in blocks(&text).iter().filter(|block| is_configuration(block)) {
            count += 1;
            fs::write(&file, block.lines.join("\n")).expect("the tests' folder takes a file");
            let fault = Config::read(&file).err();
            faults.extend(fault.map(|fault| format!("{name}:{}: {fault}", block.number)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count >= 10, "the documents' form has changed: {count} configurations");
}

#[test]
fn every_sample_output_of_the_documents_is_compared_with_the_real_one() {
    let folder = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netlab")).expect("the tests");
    let tests: String =
        folder.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text")).collect();
    let tests = tests.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut count = 0;
    for (name, text) in texts() {
        let page = name.rsplit('/').next().expect("a file");
        for block in blocks(&text) {
            let outputs = block
                .lines
                .iter()
                .zip(block.lines.iter().skip(1))
                .filter(|(_, next)| !next.starts_with("# "));
            for command in outputs.filter_map(|(line, _)| line.strip_prefix("# xvs ")) {
                count += 1;
                let command = format!("xvs {command}");
                let is_compared = tests.split(&format!("\"{page}\", \"")).skip(1).any(|rest| {
                    let start = rest.split('"').next().expect("a part");
                    command.starts_with(start)
                });
                assert!(is_compared, "{name}:{}: no test compares the output of `{command}`", block.number);
            }
        }
    }
    assert!(count > 8, "the documents' form has changed: {count} samples");
}

#[test]
fn the_explain_lines_of_the_readme_stand_in_the_compared_output() {
    let text_of = |page| texts().find(|(name, _)| name.ends_with(page)).expect("the page").1;
    let readme = text_of("README.md");
    let readme = blocks(&readme);
    let explained = readme.iter().find(|block| block.lines[0].starts_with("scheduler ")).expect("the lines");
    let lines = explained.lines.join("\n");
    assert!(text_of("docs/operate.md").contains(&lines), "docs/operate.md has other lines than:\n{lines}");
}

#[test]
fn a_wrong_command_of_each_program_is_found() {
    for line in
        ["xvs statsu", "xvs drain --for 5x", "xvsd --no-such", "xvsadm -A -t here", "xvsadm --no-such"]
    {
        assert!(commands(line).iter().any(|words| fault(words).is_some()), "{line}");
    }
    let line = "xvs capture --drops | tshark -r - && xvsadm -Sn >/etc/rules   # saved";
    assert_eq!(
        commands(line).iter().map(|words| words.join(" ")).collect::<Vec<_>>(),
        ["xvs capture --drops", "tshark -r -", "xvsadm -Sn"]
    );
}
