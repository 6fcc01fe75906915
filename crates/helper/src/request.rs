//! The requests from xvsd to its helper, and the helper's reports.
//!
//! A request is one message, with the files for the program's output and a separate socket. Events arrive through that
//! socket, and the program can be ended through it. The socket closes when the last holder of its other end is gone, so
//! the end of the helper ends each request.

use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Runs a script without input and output.
    Script(Script),
    /// Checks whether a script can be run now.
    Examine(Script),
    /// Runs a program that prints netfilter's rules, with two files for its output and its errors.
    Netfilter(Vec<String>),
    /// Reads the names of the tables of iptables-legacy from a file that belongs to root.
    LegacyTables(LegacyTables),
    /// Carries out the task with this name, with its value and its descriptors (`task.rs`).
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

    /// The names, in the network namespace of this thread; empty if there are none.
    ///
    /// # Errors
    ///
    /// The file cannot be read by this process.
    pub fn read(self) -> io::Result<String> {
        match fs::read_to_string(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        }
    }
}

/// A command from keepalived.conf.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Script {
    /// The whole command, for a shell.
    pub text: String,
    /// The words of the command.
    pub argv: Vec<String>,
    /// The user that runs it; `None` means `keepalived_script` if there is such a user, otherwise the helper's user.
    pub user: Option<String>,
    /// The group; `None` means that of the user.
    pub group: Option<String>,
    /// Whether a program that runs as root is checked first (`enable_script_security`).
    pub is_checked: bool,
}

/// The helper's report on a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The program runs.
    Started,
    /// The program ended by itself with this code.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// There is no program with this name.
    Missing(String),
    /// It cannot be run, for this reason.
    Refused(String),
    /// The program was not started for lack of a local resource, for this reason.
    NotStarted(String),
    /// [`Request::Examine`]: nothing prevents the script.
    Runnable,
    /// The names that [`Request::LegacyTables`] has read.
    Names(String),
    /// [`Request::Task`]: the answer, with its descriptors.
    Done(Value),
    /// [`Request::Task`]: the error number, if there is one, and the text.
    Failed(Option<i32>, String),
}

/// How a program is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// SIGTERM to the program's group; when the program has ended, SIGKILL to the remaining processes.
    Terminate,
    /// SIGKILL for its group.
    Kill,
}

/// Whether these words run only a program that prints netfilter's rules or its own version.
pub(crate) fn is_netfilter(argv: &[String]) -> bool {
    const SAVES: [&str; 6] = [
        "iptables-save",
        "iptables-nft-save",
        "iptables-legacy-save",
        "ip6tables-save",
        "ip6tables-nft-save",
        "ip6tables-legacy-save",
    ];
    match argv.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["nft", "-j" | "-a", "list", "ruleset"] => true,
        [program] | [program, "-V"] => SAVES.contains(&program),
        _ => false,
    }
}
