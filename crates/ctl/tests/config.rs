//! The daemon refuses a configuration that cannot be before it touches anything.

use std::process::Command;
use std::{env, fs, process};

/// Runs xvsd with these arguments; exit code and what it said.
fn xvsd(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xvsd"));
    // Whoever asks for backtraces gets one behind the message.
    let output = command.args(arguments).env("RUST_BACKTRACE", "0").output().expect("xvsd runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("a text"))
}

#[test]
fn a_table_of_no_connections_or_of_too_many_is_refused_with_what_is_possible() {
    for size in ["0", "1023", "134217729", "18446744073709551615"] {
        let said = xvsd(&["--conn-table-size", size, "--interface", "lo"]);
        let want = format!("xvsd: conn_table_size = {size}: from 1024 to 134217728 connections\n");
        assert_eq!(said, (Some(2), want));
    }
}

#[test]
fn a_table_size_in_the_file_is_refused_as_one_on_the_command_line() {
    let path = env::temp_dir().join(format!("xvs-config-{}.toml", process::id()));
    fs::write(&path, "conn_table_size = 0\n").expect("a file");
    let (code, said) = xvsd(&["--config", path.to_str().expect("a text")]);
    fs::remove_file(&path).expect("the file");
    assert_eq!(
        (code, said.as_str()),
        (Some(2), "xvsd: conn_table_size = 0: from 1024 to 134217728 connections\n")
    );
}
