//! Compares which options can be combined, and the messages for wrong combinations, with ipvsadm's recorded output.
//!
//! `kernel/options.txt` has exit code and standard error of every command with every pair of options; its comments
//! describe its lines. `scripts/record-ipvsadm` recorded it on a kernel that accepts everything, as the director here.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::collections::HashMap;

use xvs_ipvsadm::output;
use xvs_ipvsadm::resolver::FixedNames;

use crate::listener::Listener;

/// Exit code and standard error as the recording writes them.
fn output_of(line: &str) -> String {
    let argv: Vec<_> = format!("ipvsadm {line}").split(' ').map(str::to_owned).collect();
    let output = output(&argv, "", &mut Listener::default(), &FixedNames::default());
    format!("{} {}", output.exit, output.stderr.trim_end_matches('\n').replace('\n', "\\n"))
}

#[test]
fn every_pair_of_options_with_every_command_is_accepted_or_refused_with_ipvsadms_message() {
    let (mut options, mut texts, mut line) = (Vec::new(), HashMap::new(), "");
    let (mut compared, mut faults) = (0, Vec::new());
    let recording = include_str!("../kernel/options.txt");
    for row in recording.lines().filter(|row| !row.starts_with('#')) {
        let (kind, rest) = row.split_once(' ').unwrap();
        match kind {
            "option" => options.push(rest),
            "said" => texts.extend([rest.split_once(' ').unwrap()]),
            "line" => line = rest,
            _ => {
                let mut numbers = rest.split(' ');
                let first = options[numbers.next().unwrap().parse::<usize>().unwrap()];
                for (second, number) in options.iter().zip(numbers) {
                    compared += 1;
                    let whole = format!("{line} {first} {second}");
                    let (ours, theirs) = (output_of(&whole), texts[number]);
                    if ours != theirs {
                        faults.push(format!("{whole}\n  xvsadm:  {ours}\n  ipvsadm: {theirs}"));
                    }
                }
            }
        }
    }
    println!("{compared} command lines");
    assert!(compared > 30_000, "{compared} command lines");
    let shown = faults.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(faults.is_empty(), "{} of {compared}, the first:\n{shown}", faults.len());
}
