//! The requests of xvsd to its helper, and the helper's reports.
//!
//! A request is one message, with the files for the program's output and a socket of its own. Events arrive through
//! that socket, and the program can be ended through it. The socket closes when the last holder of its other end is
//! gone, so the end of the helper ends each request.

use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Runs a script without input and output.
    Script(Script),
    /// Looks whether a script can be run now.
    Examine(Script),
    /// Runs a program that prints netfilter's rules, with two files for its output and its errors.
    Netfilter(Vec<String>),
    /// Reads the names of the tables that iptables-legacy has, a file of root's.
    LegacyTables(LegacyTables),
    /// Carries out the task of this name, with its value and its descriptors (`task.rs`).
    Task(String, Value),
    /// Starts xvsd once more, with the same command line, as the process that takes over. One file gets its output.
    Successor,
}

/// The file with the names of the tables of iptables-legacy, for an address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LegacyTables {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl LegacyTables {
    fn path(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    /// The names, in the network namespace of this thread; empty: there are none.
    ///
    /// # Errors
    /// The file cannot be read by this process.
    pub fn read(self) -> io::Result<String> {
        match fs::read_to_string(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        }
    }
}

/// A command of a keepalived.conf.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Script {
    /// The whole command, for a shell.
    pub text: String,
    /// Its words.
    pub argv: Vec<String>,
    /// The user that it runs as; `None`: `keepalived_script` if there is such a user, else that of the helper.
    pub user: Option<String>,
    /// Its group; `None`: that of the user.
    pub group: Option<String>,
    /// Whether a program that runs as root is checked first (`enable_script_security`).
    pub is_checked: bool,
}

/// What the helper reports of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The program runs.
    Started,
    /// The program ended by itself with this code.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// There is no program of this name.
    Missing(String),
    /// It cannot be run, for this reason.
    Refused(String),
    /// It was not started for lack of a local resource, for this reason.
    NotStarted(String),
    /// [`Request::Examine`]: nothing prevents the script.
    Runnable,
    /// What [`Request::LegacyTables`] has read.
    Names(String),
    /// [`Request::Task`]: the answer, with its descriptors.
    Done(Value),
    /// [`Request::Task`]: the error's number, if it has one, and its text.
    Failed(Option<i32>, String),
}

/// How a program is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// SIGTERM for its group; when the program has ended, SIGKILL for those that are left.
    Terminate,
    /// SIGKILL for its group.
    Kill,
}

/// Whether these words run a program that prints netfilter's rules or its own version, and nothing else.
pub(crate) fn is_netfilter(argv: &[String]) -> bool {
    const SAVES: [&str; 6] = [
        "iptables-save",
        "iptables-nft-save",
        "iptables-legacy-save",
        "ip6tables-save",
        "ip6tables-nft-save",
        "ip6tables-legacy-save",
    ];
    let words: Vec<_> = argv.iter().map(String::as_str).collect();
    match words[..] {
        ["nft", "-j" | "-a", "list", "ruleset"] => true,
        [program] | [program, "-V"] => SAVES.contains(&program),
        _ => false,
    }
}
