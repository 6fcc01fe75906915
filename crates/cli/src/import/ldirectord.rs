//! Converts ldirectord.cf to keepalived.conf: virtual servers and their settings.
//!
//! Pure, except for look-ups of names. Source: the manual ldirectord(8) 4.12. Real servers start down (`alpha`), and
//! checks begin at once (`warmup 0`), because ldirectord adds a server when its first check has passed. Real servers
//! are converted in `real_server.rs`, checks in `checks.rs`.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use xvs_ipvsadm::Resolver;
use xvs_proto::{Family, Protocol};
use xvs_sched::{ServiceKey, scheduler};

use crate::import::checks::{CheckType, print_checks};
use crate::import::lines::{Lines, Section, Setting};
use crate::import::printer::{LeftOut, Page, host, quoted_command};
use crate::import::real_server::RealServer;
use crate::import::values::{HostAndPort, mail_address, method, unquoted};
use crate::import::virtual_server::{VirtualServer, last};

/// The result of an import.
pub(super) struct Imported {
    /// The text for keepalived.conf.
    pub(super) text: String,
    /// The lines that it leaves out, in the order of their numbers.
    pub(super) left_out: Vec<LeftOut>,
}

/// Imports a file with this text. `name` is its name in comments.
pub(super) fn import(text: &str, name: &str, names: &dyn Resolver) -> Imported {
    let lines = Lines::read(text);
    let mut globals = Page::new(name);
    globals.comment(&format!("Made from {name}. To check it: xvs check --keepalived FILE"));
    let mut outside = lines.left_out.clone();
    for setting in lines.globals.iter().filter(|setting| !MAIL.contains(&setting.key.as_str())) {
        outside.extend(without_counterpart(setting));
    }
    outside.sort_by_key(|left_out| left_out.line);
    for LeftOut { line, why } in outside {
        globals.leave_out(line, why);
    }
    let mut page = Page::new(name);
    let mut known = HashMap::new();
    for section in &lines.sections {
        page.text.push('\n');
        let before = page.clone();
        if let Err(why) = virtual_server(section, &lines.globals, names, &mut known, &mut page) {
            page.return_to(before);
            page.leave_out(section.head.line, format!("{why}, until then the virtual server is left out"));
        }
    }
    let has_scripts = page
        .text
        .lines()
        .map(str::trim_start)
        .any(|line| line.starts_with("MISC_CHECK") || line.starts_with("quorum_up"));
    let recipients = last(&lines.globals, "emailalert");
    if has_scripts || recipients.is_some() {
        globals.text.push('\n');
        globals.open("global_defs");
        if has_scripts {
            globals.comment("ldirectord runs scripts as root.");
            globals.line("script_user root");
        }
        if let Some(recipients) = recipients {
            print_mail(recipients, &lines.globals, &mut globals);
        }
        globals.close();
    }
    let mut left_out = [globals.left_out, page.left_out].concat();
    left_out.sort_by_key(|left_out| left_out.line);
    Imported { text: globals.text + &page.text, left_out }
}

/// Prints who gets mails, from whom and by which server.
fn print_mail(recipients: &Setting, globals: &[Setting], page: &mut Page) {
    page.open("notification_email");
    for recipient in unquoted(&recipients.value).split([',', ' ']).filter(|word| !word.is_empty()) {
        if let Some(address) = page.accept(recipients.line, mail_address(recipient)) {
            page.line(address);
        }
    }
    page.close();
    if let Some(from) = last(globals, "emailalertfrom")
        && let Some(address) = page.accept(from.line, mail_address(&unquoted(&from.value)))
    {
        page.line(format!("notification_email_from {address}"));
    }
    if let Some(server) = last(globals, "smtp")
        && let Some(name) = page.accept(server.line, host(&unquoted(&server.value)))
    {
        page.line(format!("smtp_server {name}"));
    }
}

/// Prints a virtual server.
///
/// # Errors
/// The whole virtual server is left out for this reason.
fn virtual_server(
    section: &Section,
    globals: &[Setting],
    names: &dyn Resolver,
    known: &mut HashMap<ServiceKey, usize>,
    page: &mut Page,
) -> Result<(), String> {
    let server = VirtualServer::read(section, globals, names)?;
    if let Some(line) = known.get(&server.key) {
        return Err(format!("line {line} has the same virtual server; remove one"));
    }
    for setting in
        section.settings.iter().filter(|one| ["servicename", "comment"].contains(&one.key.as_str()))
    {
        page.comment(&format!("{}: {}", setting.key, setting.value));
    }
    match server.key {
        ServiceKey::Address { endpoint, .. } => {
            page.open(format!("virtual_server {} {}", endpoint.addr, endpoint.port));
        }
        ServiceKey::Mark { mark, .. } => page.open(format!("virtual_server fwmark {mark}")),
    }
    for LeftOut { line, why } in section.settings.iter().filter_map(without_counterpart) {
        page.leave_out(line, why);
    }
    for LeftOut { line, why } in &section.left_out {
        page.leave_out(*line, why.as_str());
    }
    let check_type = CheckType::of(&server, page);
    print_settings(&server, &check_type, page);
    let mut weight = 0;
    let mut endpoints = Vec::new();
    for setting in section.settings.iter().filter(|one| ["real", "real6"].contains(&one.key.as_str())) {
        let read = RealServer::read(&server, setting);
        for real_server in page.accept(setting.line, read).unwrap_or_default() {
            if endpoints.contains(&real_server.endpoint) {
                let why = format!("{} is already a real server; remove one", real_server.endpoint.addr);
                page.leave_out(setting.line, why);
                continue;
            }
            endpoints.push(real_server.endpoint);
            weight = real_server.weight.max(weight);
            print_real_server(&real_server, &server, &check_type, page);
        }
    }
    page.close();
    if weight == 0 {
        return Err("it has no valid real server with a weight above 0; add one".to_owned());
    }
    known.insert(server.key, section.head.line);
    Ok(())
}

fn print_settings(server: &VirtualServer<'_>, check_type: &CheckType, page: &mut Page) {
    let interval = server.interval(page);
    page.line(format!("delay_loop {interval}"));
    print_scheduling(server, page);
    if server.switch("quiescent", page).unwrap_or(true) {
        page.line("inhibit_on_failure");
    }
    if *check_type != CheckType::On {
        page.line("alpha");
        page.line("warmup 0");
    }
    if *check_type == CheckType::Off {
        return;
    }
    if let Some(setting) = server.setting("fallbackcommand")
        && let Some([down, up]) = page.accept(setting.line, fallback_commands(server, setting))
    {
        page.line(format!("quorum_down {down}"));
        page.line(format!("quorum_up {up}"));
    }
    print_fallback(server, page);
}

fn print_scheduling(server: &VirtualServer<'_>, page: &mut Page) {
    let mut name = "wrr";
    if let Some(setting) = server.own("scheduler") {
        match scheduler::names().find(|known| *known == setting.value && *known != "none") {
            Some(known) => name = known,
            None => page.leave_out(setting.line, "no scheduler of this name; wrr is used, correct it"),
        }
    }
    page.line(format!("lvs_sched {name}"));
    match server.key {
        ServiceKey::Address { protocol, .. } if protocol == Protocol::UDP => page.line("protocol UDP"),
        ServiceKey::Address { .. } => page.line("protocol TCP"),
        ServiceKey::Mark { family: Family::V6, .. } => page.line("ip_family inet6"),
        ServiceKey::Mark { .. } => {}
    }
    if let Some(setting) = server.own("ops")
        && server.switch("ops", page) == Some(true)
    {
        match server.key {
            ServiceKey::Address { .. } if server.protocol != Protocol::UDP => {
                page.leave_out(setting.line, "`ops` is for UDP only; remove it");
            }
            _ => page.line("ops"),
        }
    }
    let persistent = server.number(server.own("persistent"), 1..=PERSISTENCE_SECONDS_MAX, page);
    if let Some(seconds) = persistent {
        page.line(format!("persistence_timeout {seconds}"));
    }
    let Some(Setting { line, value, .. }) = server.own("netmask") else { return };
    let mask = match server.key.family() {
        Family::V4 => value.parse::<Ipv4Addr>().ok().map(|mask| mask.to_string()),
        Family::V6 => {
            value.parse().ok().filter(|bits| (1..=128).contains(bits)).map(|bits: u8| bits.to_string())
        }
    };
    match mask {
        Some(mask) if persistent.is_some() => page.line(format!("persistence_granularity {mask}")),
        Some(_) => page.leave_out(*line, "without `persistent` it has no effect; remove it"),
        None => page.leave_out(
            *line,
            "a netmask is like 255.255.255.0 for IPv4, and a number from 1 to 128 for IPv6; correct it",
        ),
    }
}

/// The commands for a lost and for a regained quorum.
fn fallback_commands(server: &VirtualServer<'_>, setting: &Setting) -> Result<[String; 2], String> {
    let ServiceKey::Address { endpoint, .. } = server.key else {
        return Err("its arguments for a firewall mark are not documented; write quorum_up and quorum_down"
            .to_owned());
    };
    let command = unquoted(&setting.value);
    let protocol = if server.protocol == Protocol::UDP { "udp" } else { "tcp" };
    Ok([
        quoted_command(&format!("{command} start {endpoint} {protocol}"))?,
        quoted_command(&format!("{command} stop {endpoint} {protocol}"))?,
    ])
}

fn print_fallback(server: &VirtualServer<'_>, page: &mut Page) {
    let [key, other] = match server.key.family() {
        Family::V4 => ["fallback", "fallback6"],
        Family::V6 => ["fallback6", "fallback"],
    };
    if let Some(other) = server.own(other) {
        page.leave_out(other.line, format!("in this virtual server it is `{key}`; correct it"));
    }
    let Some(Setting { line, value, .. }) = server.setting(key) else { return };
    let mut words = value.split_whitespace();
    let HostAndPort { host, port } = HostAndPort::of(words.next().unwrap_or_default());
    let Some(addr) = page.accept(*line, server.address(host)) else { return };
    let Some(port) = page.accept(*line, port.map_or(Ok(0), |port| server.port(port))) else { return };
    let method = match words.next() {
        Some(word) => match page.accept(*line, method(word)) {
            Some(method) => method,
            None => return,
        },
        None => {
            if !addr.is_loopback() {
                page.leave_out(*line, "it names no method, DR is used; add gate, masq or ipip");
            }
            "DR"
        }
    };
    let endpoint = server.endpoint(addr, port, method);
    page.line(format!("sorry_server {addr}{}", port_word(endpoint.port)));
    page.line(format!("sorry_server_lvs_method {method}"));
    if server.switch("quiescent", page).unwrap_or(true) {
        page.line("sorry_server_inhibit");
    }
}

fn print_real_server(
    real_server: &RealServer,
    server: &VirtualServer<'_>,
    check_type: &CheckType,
    page: &mut Page,
) {
    page.open(format!("real_server {}{}", real_server.endpoint.addr, port_word(real_server.endpoint.port)));
    page.line(format!("lvs_method {}", real_server.method));
    page.line(format!("weight {}", real_server.weight));
    for (keyword, threshold) in
        [("lthreshold", real_server.lower_threshold), ("uthreshold", real_server.upper_threshold)]
    {
        if let Some(number) = threshold {
            page.line(format!("{keyword} {number}"));
        }
    }
    print_checks(check_type, server, real_server, page);
    page.close();
}

/// The global settings of mails, which `global_defs` has too.
const MAIL: [&str; 3] = ["emailalert", "emailalertfrom", "smtp"];
/// Maximum persistence timeout in keepalived.conf: 31 days.
const PERSISTENCE_SECONDS_MAX: u32 = 31 * 24 * 60 * 60;
/// The reason why a setting is left out, if xvs has nothing that corresponds to it. Passwords are not repeated.
fn without_counterpart(setting: &Setting) -> Option<LeftOut> {
    let why = match (setting.key.as_str(), setting.value.as_str()) {
        ("emailalert" | "smtp", _) => {
            "xvs sends the mails of all virtual servers to the same recipients; write it outside of them"
        }
        ("emailalertfreq" | "emailalertstatus", _) => "xvs sends one mail for each change; remove it",
        ("login" | "passwd" | "database" | "secret", _) => {
            "no check of xvs has it; for such a check, write a script for MISC_CHECK"
        }
        ("monitorfile", _) => "xvs writes no file of check results; use `xvs events`",
        ("maintenancedir", _) => "xvsd watches no folder; use `xvs disable` and `xvs enable`",
        ("autoreload", "yes") => "xvsd does not reload by itself; run `xvs reload` after a change",
        ("callback", _) => "xvsd runs no program after a change; let a path unit of systemd run it",
        ("execute", _) => "it names another file; import that file, too",
        ("readdquiescent", "yes") => {
            "xvsd reports manual changes; to undo them, set `repair = true` below `[keepalived]` of xvs.toml"
        }
        ("cleanstop", "no") => "a stopped xvsd forwards nothing; for upgrades use its take-over",
        _ => return None,
    };
    Some(LeftOut::new(setting.line, format!("`{}`: {why}", setting.key)))
}

/// A port with a blank before it; nothing for port 0.
fn port_word(port: u16) -> String {
    if port == 0 { String::new() } else { format!(" {port}") }
}
