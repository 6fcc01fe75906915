//! An existing keepalived.conf: what it wants to be the case, read as keepalived reads it.
//!
//! A file's way: its lines ([`lexer`]) become statements ([`reader`], [`loops`]) and a tree of them ([`blocks`]); of that,
//! `virtual_server` and its groups are understood ([`services`], [`groups`], [`checks`], by [`values`]). Blocks of VRRP
//! and BFD are skipped: keepalived itself runs them beside us. Pure but for reading files.

pub mod blocks;
pub mod checks;
pub mod groups;
pub mod lexer;
pub mod loops;
pub mod reader;
pub mod services;
pub mod values;

use std::io;
use std::path::Path;

use blocks::Block;
use groups::Groups;
use reader::{Fault, Severity};
use services::VirtualServer;
use values::Faults;

use crate::message::Command;
use crate::state::Timeouts;

/// What a file wants.
#[derive(Debug)]
pub struct Configuration {
    /// Its virtual servers, in its order.
    pub virtual_servers: Vec<VirtualServer>,
    /// Timeouts that it sets; 0: as they are.
    pub timeouts: Timeouts,
    /// What is wrong with it, in the order of its places. With an [error](Severity::Error) it is not to be used.
    pub faults: Vec<Fault>,
}

impl Configuration {
    /// Whether it may be used.
    pub fn is_usable(&self) -> bool {
        self.faults.iter().all(|fault| fault.severity < Severity::Error)
    }

    /// What is the case before any check was made, as commands.
    pub fn begin(&self) -> Vec<Command> {
        let is_set = [self.timeouts.tcp_seconds, self.timeouts.tcp_fin_seconds, self.timeouts.udp_seconds] != [0; 3];
        let timeouts = is_set.then_some(Command::SetTimeouts(self.timeouts));
        timeouts.into_iter().chain(self.virtual_servers.iter().flat_map(VirtualServer::begin)).collect()
    }
}

/// Reads a file for the machine of this name (`--config-id`, or the first label of the host's).
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path, config_id: &str) -> io::Result<Configuration> {
    let (tokens, mut faults) = reader::read(path, config_id)?;
    let tree = blocks::tree(tokens, &mut faults);
    Ok(understood(&tree, Faults(faults)))
}

fn understood(tree: &[Block], mut faults: Faults) -> Configuration {
    let mut groups = Groups::default();
    for block in tree.iter().filter(|block| block.keyword() == "virtual_server_group") {
        groups.take(block, &mut faults);
    }
    let mut timeouts = Timeouts { tcp_seconds: 0, tcp_fin_seconds: 0, udp_seconds: 0 };
    let mut virtual_servers: Vec<VirtualServer> = Vec::new();
    for block in tree {
        match block.keyword() {
            "virtual_server_group" => {}
            "virtual_server" => {
                let Some(read) = services::read(block, &groups, &mut faults) else { continue };
                let twice = |other: &&VirtualServer| {
                    other.services.iter().any(|(key, _)| read.services.iter().any(|(new, _)| new == key))
                };
                match virtual_servers.iter().find(twice) {
                    None => virtual_servers.push(read),
                    Some(first) => faults.warn(
                        &block.place,
                        format!("`{}` has a service of that at {}; it is left out", block.text, first.place),
                    ),
                }
            }
            "global_defs" => globals(block, &mut timeouts, &mut faults),
            keyword if ELSEWHERE.contains(&keyword) => {}
            _ => faults.unknown(block),
        }
    }
    faults.0.sort_by(|a, b| a.place.cmp(&b.place));
    Configuration { virtual_servers, timeouts, faults: faults.0 }
}

/// Top-level words that are keepalived's own affair, and those of checks that say nothing of services.
const ELSEWHERE: [&str; 28] = [
    "vrrp_instance",
    "vrrp_sync_group",
    "vrrp_script",
    "vrrp_track_process",
    "vrrp_track_file",
    "track_file",
    "track_group",
    "static_ipaddress",
    "static_routes",
    "static_rules",
    "garp_group",
    "linkbeat_interfaces",
    "linkbeat_use_polling",
    "interface_up_down_delays",
    "bfd_instance",
    "SSL",
    "net_namespace",
    "net_namespace_ipvs",
    "namespace_with_ipsets",
    "use_pid_dir",
    "instance",
    "child_wait_time",
    "process_names",
    "parent_process_name",
    "checker_process_name",
    "vrrp_process_name",
    "bfd_process_name",
    "static_track_group",
];

/// What of `global_defs` is ours.
fn globals(block: &Block, timeouts: &mut Timeouts, faults: &mut Faults) {
    for statement in block.statements() {
        match statement.keyword() {
            "lvs_timeouts" => lvs_timeouts(statement, timeouts, faults),
            "lvs_sync_daemon" if statement.arguments().len() > 1 => faults.warn(
                &statement.place,
                "`lvs_sync_daemon` with a VRRP instance: keepalived then stops where the kernel has no IPVS; take it out",
            ),
            "lvs_sync_daemon" => {
                faults.warn(&statement.place, "`lvs_sync_daemon`: xvs does not synchronize connections yet");
            }
            _ => {}
        }
    }
}

fn lvs_timeouts(block: &Block, timeouts: &mut Timeouts, faults: &mut Faults) {
    for pair in block.arguments().chunks(2) {
        let seconds = pair.get(1).and_then(|text| text.parse().ok());
        let seconds = seconds.filter(|seconds| *seconds <= Timeouts::MAX_SECONDS);
        match (pair[0].as_str(), seconds) {
            ("tcp", Some(seconds)) => timeouts.tcp_seconds = seconds,
            ("tcpfin", Some(seconds)) => timeouts.tcp_fin_seconds = seconds,
            ("udp", Some(seconds)) => timeouts.udp_seconds = seconds,
            _ => return faults.refuse(block, "it is tcp, tcpfin and udp, each with seconds up to 31 days"),
        }
    }
}

#[cfg(test)]
mod testing {
    use super::blocks::Block;
    use super::lexer::words;
    use super::reader::Place;

    /// A statement.
    pub(super) fn statement(text: &str) -> Block {
        let place = Place { file: Path::new("k").into(), line: 1 };
        Block { place, words: words(text), text: text.to_owned(), body: None }
    }

    use std::path::Path;
}
