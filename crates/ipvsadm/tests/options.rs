//! Which options `xvsadm` takes together, and what it says of others, as ipvsadm itself said it.
//!
//! `ipvsadm/options.txt` holds exit code and standard error of every line with every pair of options; it says how it is
//! read, and `scripts/record-ipvsadm` makes it. Whoever is asked here agrees to everything, as did the kernel there.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

#[path = "support/listener.rs"]
mod listener;

use std::collections::HashMap;

use xvs_ipvsadm::output;
use xvs_ipvsadm::resolver::FixedNames;

use listener::Listener;

/// Exit code and standard error as the recording writes them.
fn said(line: &str) -> String {
    let argv: Vec<_> = format!("ipvsadm {line}").split(' ').map(str::to_owned).collect();
    let output = output(&argv, "", &mut Listener::default(), &FixedNames::default());
    format!("{} {}", output.exit, output.stderr.trim_end_matches('\n').replace('\n', "\\n"))
}

#[test]
fn every_pair_of_options_with_every_command_is_taken_or_refused_in_ipvsadms_words() {
    let (mut options, mut texts, mut line) = (Vec::new(), HashMap::new(), "");
    let (mut asked, mut faults) = (0, Vec::new());
    let recording = include_str!("kernel/options.txt");
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
                    asked += 1;
                    let whole = format!("{line} {first} {second}");
                    let (ours, theirs) = (said(&whole), texts[number]);
                    if ours != theirs {
                        faults.push(format!("{whole}\n  xvsadm:  {ours}\n  ipvsadm: {theirs}"));
                    }
                }
            }
        }
    }
    println!("{asked} command lines");
    assert!(asked > 30_000, "{asked} command lines");
    let shown = faults.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(faults.is_empty(), "{} of {asked}, the first:\n{shown}", faults.len());
}
