//! The workflows of .github: the scripts do the work, and a workflow only calls them.
//!
//! Every step can then run on any Debian 12. Not here: the form of the files, which actionlint checks.

use std::fs;

/// The starts of commands that a step may run: the scripts, and what the runner lacks before them.
const COMMANDS: [&str; 4] = ["scripts/", "rustup ", "git config ", "cat target/"];

/// The action that a step may use, before the hash of its commit.
const CHECKOUT: &str = "actions/checkout@";

#[test]
fn workflows_call_checkout_by_its_hash_and_scripts() {
    let mut called = Vec::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.github/workflows");
    for file in fs::read_dir(folder).expect("the workflows").map(|entry| entry.expect("an entry").path()) {
        let text = fs::read_to_string(&file).expect("a workflow is text");
        assert!(text.contains("\npermissions:\n  contents: read\n"), "{}: it may only read", file.display());
        for step in text.lines().filter_map(|line| line.trim_start().strip_prefix("- ")) {
            assert_eq!(fault(step), None, "{}: {step}", file.display());
            called.push(step.to_owned());
        }
    }
    for script in ["scripts/test", "scripts/release"] {
        assert!(called.iter().any(|step| step.contains(script)), "no workflow calls {script}");
    }
}

#[test]
fn other_actions_other_commands_and_actions_by_tag_are_found() {
    let hash = "11bd71901bbe5b1630ceea73d27597364c9af683";
    for step in [format!("uses: {CHECKOUT}{hash} # v4.2.2"), "run: scripts/test".to_owned()] {
        assert_eq!(fault(&step), None, "{step}");
    }
    for step in [
        "uses: actions/checkout@v4",
        "uses: actions/cache@11bd71901bbe5b1630ceea73d27597364c9af683",
        "run: cargo test",
        "run: |",
        "name: Tests",
    ] {
        assert!(fault(step).is_some(), "{step}");
    }
}

/// What is wrong with the first line of a step.
fn fault(step: &str) -> Option<&'static str> {
    if let Some(action) = step.strip_prefix("uses: ") {
        let hash = action.strip_prefix(CHECKOUT).and_then(|version| version.split(' ').next());
        let is_hash = |hash: &str| hash.len() == 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        return (!hash.is_some_and(is_hash)).then_some("only checkout is used, by its commit's hash");
    }
    let command = step.strip_prefix("run: ");
    let is_known = command.is_some_and(|command| COMMANDS.iter().any(|start| command.starts_with(start)));
    (!is_known).then_some("a step runs one script; longer work is a script's")
}
