//! The setup steps of a recording, as requests of the lab.
//!
//! A setup step is a shell command that prepares the director's machine: addresses, routes, names of hosts. Parsed when
//! the step is replayed. A script is translated or refused as a whole: a command without a request of the lab is an
//! error that names it, so the recording differs at that step. Not here: carrying the actions out, and a whole shell;
//! commands are separated by `;`, `&&` and new lines, and only single quotes are supported.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::recording;

/// The translation of one command of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A request of the lab.
    Request(Value),
    /// Defines a host name, as a line of `/etc/hosts` does.
    NameHost(IpAddr, String),
    /// Prints the exit code of the command before (`echo $?`).
    PrintExit,
}

/// The actions of a command line, which may be `sh -c SCRIPT`, on the director of a recording's `topology`.
///
/// # Errors
/// Names the command for which the lab has no request.
pub fn actions(argv: &[String], topology: &Value) -> Result<Vec<Action>, String> {
    let commands = match argv {
        [shell, flag, script] if shell == "sh" && flag == "-c" => commands(script),
        _ => vec![argv.to_vec()],
    };
    let mut files = BTreeMap::new();
    let mut actions = Vec::new();
    for command in &commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let found = match words.as_slice() {
            ["printf", text, file] if file.starts_with('>') => {
                files.insert(file.trim_start_matches('>'), text.replace("\\n", "\n"));
                Some(Vec::new())
            }
            ["mount", "--bind", file, "/etc/hosts"] => files.get(file).and_then(|text| hosts(text)),
            ["ip", "-4" | "-6", rest @ ..] | ["ip", rest @ ..] => network(rest, topology),
            ["sysctl", "-w", setting] => setting
                .split_once('=')
                .and_then(|(name, value)| recording::setting(name, &json!(value)).ok())
                .map(|request| vec![Action::Request(request)]),
            ["ipvsadm", words @ ..] => Some(vec![adm(words)]),
            ["ipvsadm-save", words @ ..] => Some(vec![adm(&[&["-S"][..], words].concat())]),
            ["ipvsadm-restore"] | ["ipvsadm-restore", "</dev/null"] => Some(vec![adm(&["-C"]), adm(&["-R"])]),
            ["echo", "$?"] => Some(vec![Action::PrintExit]),
            _ => None,
        };
        actions.extend(found.ok_or_else(|| format!("the lab has no request for `{}`", words.join(" ")))?);
    }
    Ok(actions)
}

/// The changes of an `ip` command to the director's network; `None` if the lab cannot make them.
fn network(words: &[&str], topology: &Value) -> Option<Vec<Action>> {
    let request = match words {
        ["link", "set", link, "up"] | ["link", "set", "dev", link, "up"] => {
            return topology["director"].get(link).map(|_| Vec::new());
        }
        ["addr" | "address", "add" | "replace", addr, "dev", link] => address(addr, link, topology)?,
        ["route", "add" | "replace", dest, "via", via, "dev", link] => {
            let dest = if *dest == "default" && via.contains(':') { "::/0" } else { dest };
            json!({ "route": dest, "via": via, "link": link })
        }
        ["neigh" | "neighbour", "add" | "replace", addr, "lladdr", mac, "dev", link] => {
            json!({ "neighbor": addr, "mac": mac, "link": link })
        }
        ["link", "add", "link", over, "name", link, "type", "vlan", "id", id] => {
            json!({ "link": link, "vlan": id.parse::<u16>().ok()?, "over": over })
        }
        _ => return None,
    };
    Some(vec![Action::Request(request)])
}

/// A further address of a link. The lab accepts addresses only with a new link, so a single address gets a link of its
/// own: the link of an address makes no difference. A whole network is refused: its route would be on the wrong link.
fn address(addr: &str, link: &str, topology: &Value) -> Option<Value> {
    let (host, len) = addr.split_once('/').unwrap_or((addr, if addr.contains(':') { "128" } else { "32" }));
    let single = if host.parse::<IpAddr>().ok()?.is_ipv6() { "128" } else { "32" };
    let mac = topology["director"].get(link)?["mac"].as_str()?;
    let name = format!("{link} {host}");
    (len == single).then(|| json!({ "link": name, "mac": mac, "addresses": [format!("{host}/{len}")] }))
}

/// The lines of `/etc/hosts`, without aliases.
fn hosts(text: &str) -> Option<Vec<Action>> {
    let line = |line: &str| {
        let (addr, name) = line.split_once(char::is_whitespace)?;
        Some(Action::NameHost(addr.parse().ok()?, name.trim().to_owned()))
    };
    text.lines().map(line).collect()
}

fn adm(words: &[&str]) -> Action {
    Action::Request(json!({ "adm": words }))
}

/// The commands of a script, each split into words.
fn commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word = None::<String>;
    let mut quoted = false;
    for letter in script.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' | '\t' | ';' | '&' | '\n' if !quoted => {
                if let (Some(word), Some(command)) = (word.take(), commands.last_mut()) {
                    command.push(word);
                }
                if !matches!(letter, ' ' | '\t') {
                    commands.push(Vec::new());
                }
            }
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if let (Some(word), Some(command)) = (word, commands.last_mut()) {
        command.push(word);
    }
    commands.retain(|command| !command.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_a_script(script: &str) -> Result<Vec<Action>, String> {
        let topology = json!({ "director": { "rs0": { "mac": "02:00:00:00:02:01" } } });
        actions(&["sh", "-c", script].map(str::to_owned), &topology)
    }

    #[test]
    fn supported_commands_become_requests_of_the_lab() {
        let own_link =
            |addr: &str, name: &str| json!({ "link": name, "mac": "02:00:00:00:02:01", "addresses": [addr] });
        let rows = [
            ("ip addr add 10.2.0.77/32 dev rs0", vec![own_link("10.2.0.77/32", "rs0 10.2.0.77")]),
            ("ip -6 address add fd00:2::77 dev rs0", vec![own_link("fd00:2::77/128", "rs0 fd00:2::77")]),
            (
                "ip route add 192.0.2.0/24 via 10.2.0.11 dev rs0",
                vec![json!({ "route": "192.0.2.0/24", "via": "10.2.0.11", "link": "rs0" })],
            ),
            (
                "ip -6 route replace default via fd00:2::11 dev rs0",
                vec![json!({ "route": "::/0", "via": "fd00:2::11", "link": "rs0" })],
            ),
            (
                "ip neigh replace 10.2.0.9 lladdr 02:00:00:00:02:19 dev rs0",
                vec![json!({ "neighbor": "10.2.0.9", "mac": "02:00:00:00:02:19", "link": "rs0" })],
            ),
            (
                "ip link add link rs0 name rs0.5 type vlan id 5 && ip link set rs0 up",
                vec![json!({ "link": "rs0.5", "vlan": 5, "over": "rs0" })],
            ),
            ("sysctl -w net.ipv4.vs.sloppy_tcp=1", vec![json!({ "set": { "sloppy_tcp": "1" } })]),
            (
                "ipvsadm -A -t 10.1.0.1:80;\nipvsadm-save -n",
                vec![json!({ "adm": ["-A", "-t", "10.1.0.1:80"] }), json!({ "adm": ["-S", "-n"] })],
            ),
            ("ipvsadm-restore </dev/null", vec![json!({ "adm": ["-C"] }), json!({ "adm": ["-R"] })]),
        ];
        for (script, requests) in rows {
            let expected = requests.into_iter().map(Action::Request).collect();
            assert_eq!(of_a_script(script), Ok(expected), "{script}");
        }
    }

    #[test]
    fn a_mounted_hosts_file_defines_its_names() {
        let script = "printf '10.1.0.100 web.example\\nfd00:2::11 six.example\\n' >/tmp/hosts; \
                      mount --bind /tmp/hosts /etc/hosts; echo $?";
        let name = |addr: &str, name: &str| Action::NameHost(addr.parse().expect(addr), name.to_owned());
        let expected =
            vec![name("10.1.0.100", "web.example"), name("fd00:2::11", "six.example"), Action::PrintExit];
        assert_eq!(of_a_script(script), Ok(expected));
    }

    #[test]
    fn a_script_with_an_unsupported_command_is_refused_as_a_whole() {
        let rows = [
            ("ip link set rs0 up; reboot", "reboot"),
            ("ip link set rs0 mtu 1400", "ip link set rs0 mtu 1400"),
            ("ip addr add 10.2.0.77/24 dev rs0", "ip addr add 10.2.0.77/24 dev rs0"),
            ("ip addr add 10.2.0.77 dev rs9", "ip addr add 10.2.0.77 dev rs9"),
            ("mount --bind /tmp/hosts /etc/hosts", "mount --bind /tmp/hosts /etc/hosts"),
            ("sysctl -w net.ipv4.ip_forward=0", "sysctl -w net.ipv4.ip_forward=0"),
        ];
        for (script, command) in rows {
            let refused = format!("the lab has no request for `{command}`");
            assert_eq!(of_a_script(script), Err(refused), "{script}");
        }
    }
}
