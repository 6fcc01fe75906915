//! Reads and writes the kernel's settings for a real server, under `/proc/sys` in the process's network namespace.
//!
//! For `arp_ignore`, `arp_announce` and `rp_filter` the kernel uses the higher of the values for `all` and for the
//! interface (kernel `Documentation/networking/ip-sysctl.rst`).

use std::{fs, io};

/// The lowest value that a setting must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MinimumValue {
    /// The setting's path under `/proc/sys`.
    pub(crate) key: String,
    pub(crate) at_least: i32,
}

/// The settings with which an interface sends no ARP replies for addresses on other interfaces, and no ARP requests
/// with them as sender.
pub(crate) fn quiet_arp(dev: &str) -> Vec<MinimumValue> {
    ["all", dev]
        .into_iter()
        .flat_map(|dev| [minimum(dev, "arp_ignore", 1), minimum(dev, "arp_announce", 2)])
        .collect()
}

/// The setting with which packets are accepted even if their replies leave through another interface.
pub(crate) fn loose_source_check(dev: &str) -> MinimumValue {
    minimum(dev, "rp_filter", LOOSE)
}

fn minimum(dev: &str, name: &str, at_least: i32) -> MinimumValue {
    MinimumValue { key: key(dev, name), at_least }
}

/// Whether packets are dropped if their replies would leave through another interface.
pub(crate) fn checks_strictly(dev: &str) -> io::Result<bool> {
    Ok(read(&key("all", "rp_filter"))?.max(read(&key(dev, "rp_filter"))?) == STRICT)
}

pub(crate) fn read(key: &str) -> io::Result<i32> {
    let text = fs::read_to_string(path(key))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{} reads {text:?}", path(key))))
}

pub(crate) fn write(key: &str, value: i32) -> io::Result<()> {
    fs::write(path(key), value.to_string())
}

/// The setting's name for sysctl(8); an interface name with dots needs slashes as separators.
pub(crate) fn name(key: &str) -> String {
    if key.contains('.') { key.to_owned() } else { key.replace('/', ".") }
}

fn key(dev: &str, name: &str) -> String {
    format!("net/ipv4/conf/{dev}/{name}")
}

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}

const STRICT: i32 = 1;
const LOOSE: i32 = 2;
