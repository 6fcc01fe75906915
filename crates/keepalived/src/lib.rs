//! An existing keepalived.conf: what it wants to be the case, read as keepalived reads it.
//!
//! A file's way: its lines ([`lexer`]) become statements ([`reader`], [`loops`]) and a tree of them ([`blocks`]); of
//! that, `virtual_server` and its groups are understood ([`services`] with `settings` and [`servers`], [`groups`],
//! [`checks`] by `checkers`, `http`, `ssl` and [`files`]; [`values`] reads what stands behind keywords), and of
//! `global_defs` what is ours ([`globals`]). Blocks of VRRP and BFD are skipped: keepalived itself runs them. Pure but
//! for reading files. Not here: making the checks.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use blocks::Block;
use files::Files;
use groups::Groups;
use rustix::system::uname;
use ssl::Ssl;
use values::{Faults, decimal};
use xvs_model::fault::Place;
use xvs_model::timeouts::Timeouts;
use xvs_model::virtual_server::{Configuration, Globals, VirtualServer};
use xvs_sched::ServiceKey;

pub mod blocks;
mod checkers;
pub mod checks;
pub mod files;
pub mod globals;
pub mod groups;
mod head;
mod http;
pub mod lexer;
pub mod loops;
pub mod reader;
pub mod servers;
pub mod services;
mod settings;
mod sorry_server;
mod ssl;
pub mod values;

#[cfg(test)]
mod tests;

/// Reads a file for the machine of this name (`--config-id`, or the first label of the host's).
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path, config_id: &str) -> io::Result<Configuration> {
    let (tokens, mut faults) = reader::read(path, config_id)?;
    let tree = blocks::tree(tokens, &mut faults);
    Ok(understood(&tree, Faults(faults)))
}

/// The first label of this host's name.
pub fn host() -> String {
    let name = uname().nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn understood(tree: &[Block], mut faults: Faults) -> Configuration {
    let mut groups = Groups::default();
    for block in tree.iter().filter(|block| block.keyword() == "virtual_server_group") {
        groups.take(block, &mut faults);
    }
    let mut files = Files::default();
    let is_file = |block: &&Block| matches!(block.keyword(), "track_file" | "vrrp_track_file");
    tree.iter().filter(is_file).for_each(|block| files.take(block, &mut faults));
    let ssl = Ssl::of(tree, &mut faults);
    let mut globals = Globals::default();
    let mut timeouts = Timeouts::UNSET;
    let mut virtual_servers: Vec<VirtualServer> = Vec::new();
    let mut known = HashMap::new();
    let mut of_groups: HashMap<String, usize> = HashMap::new();
    for block in tree {
        match block.keyword() {
            "virtual_server_group" | "SSL" => {}
            "virtual_server" => {
                let read = services::read(block, &groups, &files, &ssl, &mut faults);
                let Some(mut read) = read else { continue };
                leave_known(&mut read, &mut known, &mut faults);
                if !read.services.is_empty() {
                    if let Some(group) = read.group() {
                        let count = of_groups.entry(group.to_owned()).or_default();
                        read.ordinal = *count;
                        *count += 1;
                    }
                    virtual_servers.push(read);
                }
            }
            "global_defs" => global_defs(block, &mut timeouts, &mut globals, &mut faults),
            "vrrp_instance" => {
                for vmac in block.statements().iter().filter(|statement| statement.keyword() == "use_vmac") {
                    let why = "what is sent to a virtual link address does not reach xvs; take it out";
                    faults.warn(&vmac.place, format!("`use_vmac`: {why}"));
                }
            }
            keyword if ELSEWHERE.contains(&keyword) => {}
            _ => faults.unknown(block),
        }
    }
    // A loop may have said a line's fault in each round.
    faults.0.sort_by(|a, b| a.place.cmp(&b.place));
    faults.0.dedup();
    Configuration { virtual_servers, globals, timeouts, faults: faults.0 }
}

/// Takes away the services that another virtual server has.
fn leave_known(read: &mut VirtualServer, known: &mut HashMap<ServiceKey, Place>, faults: &mut Faults) {
    let mut twice = None;
    read.services.retain(|(key, _)| match known.get(key) {
        Some(first) => {
            twice.get_or_insert((*key, first.clone()));
            false
        }
        None => true,
    });
    if let Some((key, first)) = twice {
        let text =
            format!("`virtual_server {}`: {key} is there already, by {first}; the first holds", read.name);
        faults.warn(&read.place, text);
    }
    known.extend(read.services.iter().map(|(key, _)| (*key, read.place.clone())));
}

/// Top-level words that are keepalived's own affair, and those of checks that say nothing of services.
const ELSEWHERE: [&str; 26] = [
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
fn global_defs(block: &Block, timeouts: &mut Timeouts, globals: &mut Globals, faults: &mut Faults) {
    for statement in block.statements() {
        match statement.keyword() {
            "lvs_timeouts" => lvs_timeouts(statement, timeouts, faults),
            "lvs_sync_daemon" => {
                let own = ["id", "maxlen", "port", "ttl", "group"];
                let with_instance =
                    statement.arguments().get(1).is_some_and(|word| !own.contains(&word.as_str()));
                let why = match with_instance {
                    true => "with a VRRP instance keepalived ends where the kernel has no IPVS; take it out",
                    false => "xvs does not synchronize connections yet",
                };
                faults.warn(&statement.place, format!("`lvs_sync_daemon`: {why}"));
            }
            _ => globals::take(globals, statement, faults),
        }
    }
    globals::check(globals, block, faults);
}

fn lvs_timeouts(block: &Block, timeouts: &mut Timeouts, faults: &mut Faults) {
    if block.arguments().is_empty() {
        faults.refuse(block, "it has no time");
    }
    for pair in block.arguments().chunks(2) {
        let seconds = pair.get(1).and_then(|text| decimal(text));
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
    use crate::blocks::Block;
    use crate::lexer::words;
    use xvs_model::fault::Place;

    /// A statement.
    pub(super) fn statement(text: &str) -> Block {
        let place = Place { file: Path::new("k").into(), line: 1 };
        Block { place, words: words(text), text: text.to_owned(), body: None }
    }

    use std::path::Path;
}
