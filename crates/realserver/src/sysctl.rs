//! The kernel's settings that a real server depends on, under `/proc/sys` of the process's network namespace.
//!
//! `arp_ignore`, `arp_announce` and `rp_filter` take effect with the higher of their values for `all` and for the
//! interface (kernel `Documentation/networking/ip-sysctl.rst`).

use std::{fs, io};

/// What a setting is wanted to be at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its place under `/proc/sys`.
    pub(crate) place: String,
    pub(crate) at_least: i32,
}

/// The settings with which an interface neither answers ARP for addresses that are not its own, nor gives them
/// as the sender's in its questions.
pub(crate) fn quiet_arp(dev: &str) -> Vec<Wanted> {
    let of = |dev: &str, name, at_least| Wanted { place: place(dev, name), at_least };
    ["all", dev].into_iter().flat_map(|dev| [of(dev, "arp_ignore", 1), of(dev, "arp_announce", 2)]).collect()
}

/// The setting with which packets are taken whose answer leaves by another interface.
pub(crate) fn loose_source_check(dev: &str) -> Wanted {
    Wanted { place: place(dev, "rp_filter"), at_least: LOOSE }
}

/// Whether packets are refused whose answer would leave by another interface.
pub(crate) fn checks_strictly(dev: &str) -> io::Result<bool> {
    let check = read(&place("all", "rp_filter"))?.max(read(&place(dev, "rp_filter"))?);
    Ok(check == STRICT)
}

pub(crate) fn read(place: &str) -> io::Result<i32> {
    let text = fs::read_to_string(path(place))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{} reads {text:?}", path(place))))
}

pub(crate) fn write(place: &str, value: i32) -> io::Result<()> {
    fs::write(path(place), value.to_string())
}

/// As operators write it for sysctl(8), whose separator is a slash where a name has dots.
pub(crate) fn name(place: &str) -> String {
    if place.contains('.') { place.to_owned() } else { place.replace('/', ".") }
}

fn place(dev: &str, name: &str) -> String {
    format!("net/ipv4/conf/{dev}/{name}")
}

fn path(place: &str) -> String {
    format!("/proc/sys/{place}")
}

const STRICT: i32 = 1;
const LOOSE: i32 = 2;
