//! The program `xvsd`: configurations that it refuses before it changes anything, and the messages.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::{env, process};

/// Runs it with a socket in a directory that does not exist; it must end by itself.
fn xvsd(purpose: &str, arguments: &[&str]) -> (Output, PathBuf) {
    let folder = env::temp_dir().join(format!("xvs-xvsd-{}-{purpose}", process::id()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_xvsd"));
    command.arg("--socket").arg(folder.join("xvsd.sock")).args(arguments).env("RUST_BACKTRACE", "1");
    (command.output().expect("xvsd starts"), folder)
}

#[test]
fn a_wrong_configuration_is_one_line_and_exit_2_and_touches_nothing() {
    let lines: [(&str, &[&str], &str); 4] = [
        ("none", &[], "xvsd: no interface to take packets from"),
        ("twice", &["--interface", "lo", "--interface", "lo"], "xvsd: interface lo is named twice"),
        (
            "log",
            &["--interface", "lo", "--log", "warning"],
            "xvsd: log = \"warning\": error, warn, info, debug",
        ),
        ("file", &["--config", "/nonexistent/xvs.toml"], "xvsd: /nonexistent/xvs.toml: "),
    ];
    for (purpose, arguments, begin) in lines {
        let (output, folder) = xvsd(purpose, arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{purpose}: {message}");
        assert!(message.starts_with(begin) && message.lines().count() == 1, "{purpose}: {message}");
        assert!(!folder.exists(), "{purpose}: a directory was created");
    }
}

#[test]
fn a_table_of_no_connections_or_of_too_many_is_refused_with_what_is_possible() {
    for size in ["0", "1023", "134217729", "18446744073709551615"] {
        let (output, folder) = xvsd("table", &["--interface", "lo", "--conn-table-size", size]);
        let want = format!("xvsd: conn_table_size = {size}: from 1024 to 134217728 connections\n");
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(2), want.into()));
        assert!(!folder.exists(), "{size}: a directory was created");
    }
}
