//! `xvs healthy` where nobody answers: it says no, and comes back.
//!
//! Needs no root. Not here: daemons that are there (`tests/netlab_healthy.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

use socket2::{Domain, SockAddr, Socket, Type};

/// The exit code and what was said.
fn healthy(socket: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xvs"));
    command.args(["healthy", "--timeout", "0.2"]).env("XVS_SOCKET", socket);
    let output = command.output().expect("xvs can be started");
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn path(name: &str) -> PathBuf {
    env::temp_dir().join(format!("xvs-healthy-{name}-{}", process::id()))
}

#[test]
fn without_a_daemon_nothing_is_healthy_and_the_socket_is_named() {
    let path = path("none");
    let (code, said) = healthy(&path);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no xvsd listens on") && said.contains(&*path.to_string_lossy()), "{said}");
}

#[test]
fn a_socket_that_takes_nobody_any_more_holds_nobody_up() {
    let path = path("full");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let address = SockAddr::unix(&path).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let said = "xvs: xvsd has not answered for 200ms\n".to_owned();
    // Connected, and nobody there. This takes the one place, also when who has it is gone.
    assert_eq!(healthy(&path), (Some(1), said.clone()));
    let second = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    second.set_nonblocking(true).unwrap();
    let full = second.connect(&address).unwrap_err().kind();
    assert_eq!(full, std::io::ErrorKind::WouldBlock);
    let answer = healthy(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(answer, (Some(1), said));
}
