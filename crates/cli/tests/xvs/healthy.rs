//! `xvs healthy` without an answering daemon: it fails within its timeout.
//!
//! Needs no root. Not here: running daemons (`tests/netlab/healthy.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, process};

use socket2::{Domain, SockAddr, Socket, Type};

/// The exit code and stderr.
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
fn without_a_daemon_healthy_fails_and_names_the_socket() {
    let path = path("none");
    let (code, said) = healthy(&path);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no xvsd listens on") && said.contains(&*path.to_string_lossy()), "{said}");
}

#[test]
fn a_full_socket_does_not_delay_the_exit() {
    let path = path("full");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let address = SockAddr::unix(&path).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let said = "xvs: xvsd has not answered for 200ms\n".to_owned();
    // This connection is never accepted and fills the queue of one, also after its client has exited.
    assert_eq!(healthy(&path), (Some(1), said.clone()));
    let second = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    second.set_nonblocking(true).unwrap();
    let full = second.connect(&address).unwrap_err().kind();
    assert_eq!(full, std::io::ErrorKind::WouldBlock);
    let answer = healthy(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(answer, (Some(1), said));
}
