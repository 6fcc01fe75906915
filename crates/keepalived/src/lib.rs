//! Parser for keepalived.conf: the syntax of keepalived 2.2.7, with the additions `rise`, `tls_verify`, `through_vip`,
//! `agent_check`, FULLNAT and lines `#xvs …`.
//!
//! Lines ([`lexer`]) become statements ([`reader`], [`loops`]), and statements a tree of blocks ([`blocks`]). From the
//! tree this crate reads `virtual_server` ([`services`], `settings`, [`servers`], `own_lines`), `virtual_server_group`
//! ([`groups`], `definitions`), the checkers (`checkers`, `http`, `ssl`, [`files`], [`timing`]) and the statements of
//! `global_defs` that concern xvs ([`globals`]); `unused` handles the other statements. [`values`] parses the arguments
//! of keywords. VRRP and BFD blocks are skipped: keepalived itself runs them. Pure, apart from reading files. The crate
//! `xvs_health` runs the checks.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use blocks::Block;
use definitions::Definitions;
use reader::Lines;
use rustix::system::uname;
use values::{Faults, decimal};
use xvs_model::config::timeouts::Timeouts;
use xvs_model::health_checks::fault::Place;
use xvs_model::health_checks::virtual_server::{Configuration, Globals, VirtualServer};
use xvs_sched::ServiceKey;

// From files to a tree of blocks.
pub mod blocks;
pub mod lexer;
pub mod loops;
pub mod reader;

// Arguments, and blocks that others refer to.
mod definitions;
pub mod files;
pub mod globals;
pub mod groups;
mod ssl;
mod unused;
pub mod values;

// Virtual servers.
mod head;
mod own_lines;
pub mod servers;
pub mod services;
mod settings;
mod sorry_server;

// Checkers.
mod checkers;
mod http;
pub mod timing;

#[cfg(test)]
mod tests;

/// Reads a configuration file. `config_id` selects the conditional lines: `--config-id`, or the first label of the host
/// name.
///
/// # Errors
///
/// The file itself cannot be read. A file that it includes and that cannot be read is a fault.
///
/// ```
/// let path = std::env::temp_dir().join(format!("xvs-example-{}.conf", std::process::id()));
/// std::fs::write(&path, "
/// virtual_server 198.51.100.2 80 {
///     lb_algo wlc
///     lb_kind NAT
///     protocol TCP
///     real_server 192.0.2.11 8080 { TCP_CHECK { } }
/// }
/// ")?;
/// let configuration = xvs_keepalived::read(&path, "lb1")?;
/// std::fs::remove_file(&path)?;
/// assert!(configuration.is_usable());
/// let server = &configuration.virtual_servers[0];
/// assert_eq!(server.services[0].0.to_string(), "TCP 198.51.100.2:80");
/// assert_eq!(server.real_servers[0].checks.len(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read(path: &Path, config_id: &str) -> io::Result<Configuration> {
    let Lines { tokens, faults, left_out } = reader::read(path, config_id)?;
    let mut faults = Faults { all: faults, left_out };
    let mut tree = blocks::tree(tokens, &mut faults.all);
    own_lines::remove_misplaced(&mut tree, "", &mut faults);
    Ok(interpret(&tree, faults))
}

/// The first label of the host name.
pub fn host() -> String {
    uname().nodename().to_string_lossy().split('.').next().unwrap_or_default().to_owned()
}

fn interpret(tree: &[Block], mut faults: Faults) -> Configuration {
    let definitions = Definitions::of(tree, &mut faults);
    let vrrp = tree.iter().find(|block| block.keyword() == "vrrp_instance");
    let runs_vrrp = vrrp.is_some();
    if let Some(block) = vrrp
        && !tree.iter().any(asks_xvs)
    {
        faults.warn_of(
            block,
            "no `vrrp_script` runs `xvs healthy`, so this director keeps its addresses when xvsd has ended; \
             docs/failover.md has the lines",
        );
    }
    let mut globals = Globals::default();
    let mut timeouts = Timeouts::UNSET;
    let mut virtual_servers: Vec<VirtualServer> = Vec::new();
    let mut known = HashMap::new();
    let mut of_groups: HashMap<String, usize> = HashMap::new();
    for block in tree {
        match block.keyword() {
            "virtual_server_group" | "SSL" => {}
            "virtual_server" => {
                let Some(mut read) = services::read(block, &definitions, &mut faults) else { continue };
                remove_duplicates(&mut read, &mut known, &mut faults);
                if !read.services.is_empty() {
                    if let Some(group) = read.group() {
                        let count = of_groups.entry(group.to_owned()).or_default();
                        read.ordinal = *count;
                        *count += 1;
                    }
                    virtual_servers.push(read);
                }
            }
            "global_defs" => global_defs(block, runs_vrrp, &mut timeouts, &mut globals, &mut faults),
            "vrrp_instance" => {
                for vmac in block.statements().iter().filter(|statement| statement.keyword() == "use_vmac") {
                    let why = "packets to a virtual MAC address do not reach xvs; remove it";
                    faults.warn(&vmac.place, format!("`use_vmac`: {why}"));
                }
            }
            _ => unused::outside(block, &mut faults),
        }
    }
    globals::finish_mail(&mut globals, &host());
    // A loop reports a fault in its line in each round.
    faults.all.sort_by(|a, b| a.place.cmp(&b.place));
    faults.all.dedup();
    Configuration { virtual_servers, globals, timeouts, faults: faults.all, left_out: faults.left_out }
}

/// Whether this is a `vrrp_script` that runs `xvs healthy`, or a script whose name contains xvs.
fn asks_xvs(block: &Block) -> bool {
    let mut scripts = block.statements().iter().filter(|statement| statement.keyword() == "script");
    block.keyword() == "vrrp_script" && scripts.any(|script| script.text.contains("xvs"))
}

/// Removes the services that an earlier virtual server has.
fn remove_duplicates(read: &mut VirtualServer, known: &mut HashMap<ServiceKey, Place>, faults: &mut Faults) {
    let mut twice = None;
    read.services.retain(|(key, _)| match known.get(key) {
        Some(first) => {
            twice.get_or_insert((*key, first.clone()));
            false
        }
        None => true,
    });
    if let Some((key, first)) = twice {
        faults.warn(
            &read.place,
            format!(
                "`virtual_server {}`: {key} is already defined at {first}; the first definition is used",
                read.name
            ),
        );
    }
    known.extend(read.services.iter().map(|(key, _)| (*key, read.place.clone())));
}

/// Reads the statements of `global_defs` that concern xvs.
fn global_defs(
    block: &Block,
    runs_vrrp: bool,
    timeouts: &mut Timeouts,
    globals: &mut Globals,
    faults: &mut Faults,
) {
    for statement in block.statements() {
        if statement.keyword() == "lvs_timeouts" {
            lvs_timeouts(statement, timeouts, faults);
        } else if !globals::apply(globals, statement, faults) {
            unused::in_global_defs(statement, runs_vrrp, faults);
        }
    }
    globals::check(globals, block, faults);
}

fn lvs_timeouts(block: &Block, timeouts: &mut Timeouts, faults: &mut Faults) {
    if block.arguments().is_empty() {
        faults.refuse(block, "a time is missing");
    }
    for pair in block.arguments().chunks(2) {
        let seconds =
            pair.get(1).and_then(|text| decimal(text)).filter(|seconds| *seconds <= Timeouts::MAX_SECONDS);
        match (pair[0].as_str(), seconds) {
            ("tcp", Some(seconds)) => timeouts.tcp_seconds = seconds,
            ("tcpfin", Some(seconds)) => timeouts.tcp_fin_seconds = seconds,
            ("udp", Some(seconds)) => timeouts.udp_seconds = seconds,
            _ => return faults.refuse(block, "expected tcp, tcpfin or udp, each with seconds up to 31 days"),
        }
    }
}

#[cfg(test)]
mod testing {
    use std::path::Path;

    use crate::blocks::Block;
    use crate::lexer::words;
    use xvs_model::health_checks::fault::Place;

    /// A statement.
    pub(super) fn statement(text: &str) -> Block {
        let place = Place { file: Path::new("k").into(), line: 1 };
        Block { place, words: words(text), text: text.to_owned(), body: None }
    }
}
