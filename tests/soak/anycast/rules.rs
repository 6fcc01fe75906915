//! The rules of a director of a fleet, for the suites `anycast` and `fleet`: lines of the example, and a service for
//! each kind of connections.

use xvs::cluster::{VIP, real_server};
use xvs::fleet::example;

use crate::connections::METHODS;

/// The services: the options of their real servers, their names, and the flags of `mh`.
pub(crate) const SERVICES: [(&str, &str, &str); METHODS.len()] = [
    ("-g", "DR, by IP", "mh-fallback"),
    ("--fullnat", "FULLNAT", "mh-fallback,mh-port"),
    ("-g", "DR", "mh-fallback,mh-port"),
    ("-i", "tunnel", "mh-fallback,mh-port"),
];

/// The lines of the example that begin so.
pub(crate) fn of_example(start: &str) -> String {
    example("rules").lines().filter(|line| line.starts_with(start)).map(|line| format!("{line}\n")).collect()
}

/// The services with so many real servers each, whose weights `weight` returns in turn.
pub(crate) fn services(scheduler: &str, servers: u8, mut weight: impl FnMut() -> u8) -> String {
    let mut text = String::new();
    for ((option, _, flags), (_, _, port)) in SERVICES.into_iter().zip(METHODS) {
        let flags = if scheduler == "mh" { format!(" -b {flags}") } else { String::new() };
        text += &format!("-A -t {VIP}:{port} -s {scheduler}{flags}\n");
        let prefix = if option == "--fullnat" { "#xvs " } else { "" };
        for server in (1..=servers).map(real_server) {
            text += &format!("{prefix}-a -t {VIP}:{port} -r {server}:{port} {option} -w {}\n", weight());
        }
    }
    text
}
