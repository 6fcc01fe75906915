//! Commands as command lines of `xvsadm` and `xvs`: for the log, for `xvs events`, for rules files.

use xvs_model::config::command::Command;
use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::service::{Netmask, ServiceOptions};
use xvs_model::config::service_option::named_service;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::foreign_text::escape_control;
use xvs_model::objects::{Object, Rule};
use xvs_proto::Endpoint;
use xvs_sched::{ClientAddress, ForwardingMethod, ServiceKey, SynProxy};

use crate::listing::{Naming, joined, netmask};
use crate::values::flag_names;

/// The command line that requests a change, with every option, also those that `-S` omits, and with numbers instead of
/// names. It has no control characters, whatever a client put into a name.
pub fn command_line(command: &Command) -> String {
    escape_control(&match command {
        Command::Add(rule) => added(rule),
        Command::Delete(object) => deleted(object),
        Command::EditService { key, options } => {
            format!("xvsadm -E {}{}", named_service(key), service(key, options))
        }
        Command::EditDestination { service, endpoint, options } => {
            format!("xvsadm -e {}{}", server(service, *endpoint), destination(options))
        }
        Command::Flush => "xvsadm -C".to_owned(),
        Command::Zero(Some(key)) => format!("xvsadm -Z {}", named_service(key)),
        Command::Zero(None) => "xvsadm -Z".to_owned(),
    })
}

/// The command line that adds a rule's object, possibly with control characters.
pub(crate) fn added(rule: &Rule) -> String {
    match rule {
        Rule::Service { key, options } => {
            format!("xvsadm -A {}{}", named_service(key), service(key, options))
        }
        Rule::Destination { service, endpoint, options } => {
            format!("xvsadm -a {}{}", server(service, *endpoint), destination(options))
        }
        Rule::Timeouts(Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds }) => {
            format!("xvsadm --set {tcp_seconds} {tcp_fin_seconds} {udp_seconds}")
        }
        Rule::Daemon(daemon) => start_daemon(daemon),
        // All others have arguments.
        noun => format!("xvs {}", noun.arguments().unwrap_or_default()),
    }
}

fn deleted(object: &Object) -> String {
    match object {
        Object::Service(key) => format!("xvsadm -D {}", named_service(key)),
        Object::Destination { service, endpoint } => format!("xvsadm -d {}", server(service, *endpoint)),
        // No command deletes them.
        Object::Timeouts => "timeouts".to_owned(),
        Object::Daemon(role) => format!("xvsadm --stop-daemon {}", role.name()),
        noun => format!("xvs {}", noun.arguments().unwrap_or_default()),
    }
}

/// The options that name a destination.
fn server(service: &ServiceKey, endpoint: Endpoint) -> String {
    format!("{} -r {}", named_service(service), Naming::NUMERIC.destination(service, endpoint))
}

fn service(key: &ServiceKey, options: &ServiceOptions) -> String {
    service_rule(key, options) + &xvs_options(options)
}

/// The options that ipvsadm does not have, if they are not the defaults.
pub(crate) fn xvs_options(options: &ServiceOptions) -> String {
    let mut text = String::new();
    if options.client_address != ClientAddress::Hidden {
        text += &format!(" --client-address {}", options.client_address.name());
    }
    if options.syn_proxy != SynProxy::Off {
        text += &format!(" --syn-proxy {}", options.syn_proxy.name());
    }
    if let Some(seconds) = options.slow_start_seconds {
        text += &format!(" --slow-start {seconds}");
    }
    text
}

fn start_daemon(daemon: &SyncDaemon) -> String {
    let SyncDaemon { role, interface, sync_id, max_len_bytes, group, port, ttl, peers } = daemon;
    let to = if peers.is_empty() {
        format!("--mcast-group {group}")
    } else {
        format!("--sync-peers {}", joined(peers))
    };
    format!(
        "xvsadm --start-daemon {} --mcast-interface {interface} --syncid {sync_id} --sync-maxlen {max_len_bytes} \
         {to} --mcast-port {port} --mcast-ttl {ttl}",
        role.name()
    )
}

/// The options of a service that `-S` prints.
pub(crate) fn service_rule(key: &ServiceKey, options: &ServiceOptions) -> String {
    let mut text = format!(" -s {}", options.scheduler);
    if let Some(seconds) = options.persistence_timeout_seconds {
        text += &format!(" -p {seconds}");
        if options.netmask != Netmask::host(key.family()) {
            text += &format!(" -M {}", netmask(options.netmask));
        }
    }
    if let Some(engine) = &options.persistence_engine {
        text += &format!(" --pe {engine}");
    }
    if options.one_packet {
        text += " -o";
    }
    if options.flags.0 != 0 {
        text += &format!(" -b {}", flag_names(options.flags, &options.scheduler));
    }
    text
}

/// The options of a destination that `-S` prints.
pub(crate) fn destination_rule(options: &DestinationOptions) -> String {
    let method = match options.method {
        ForwardingMethod::Nat => "-m",
        ForwardingMethod::Tunnel => "-i",
        ForwardingMethod::FullNat => "--fullnat",
        ForwardingMethod::DirectRouting | ForwardingMethod::Local => "-g",
    };
    let mut text = format!(" {method} -w {}", options.weight.0);
    if options.method == ForwardingMethod::Tunnel {
        text += &match options.tunnel {
            Tunnel::Ipip => " --tun-type ipip".to_owned(),
            Tunnel::Gue { port, checksum } => {
                format!(" --tun-type gue --tun-port {port} {}", checksum_option(checksum))
            }
            Tunnel::Gre { checksum } => format!(" --tun-type gre {}", checksum_option(checksum)),
        };
    }
    text
}

fn checksum_option(checksum: TunnelChecksum) -> &'static str {
    match checksum {
        TunnelChecksum::Without => "--tun-nocsum",
        TunnelChecksum::Full => "--tun-csum",
        TunnelChecksum::Remote => "--tun-remcsum",
    }
}

/// All options of a destination, with its thresholds.
pub(crate) fn destination(options: &DestinationOptions) -> String {
    let mut text = destination_rule(options);
    for (option, threshold) in [("-x", options.upper_threshold), ("-y", options.lower_threshold)] {
        if threshold > 0 {
            text += &format!(" {option} {threshold}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::command_line::*;
    use crate::grammar::{Parsed, parse};
    use crate::resolver::FixedNames;

    /// The change that a line requests.
    fn parsed(line: &str) -> Command {
        let words: Vec<_> = line.split(' ').collect();
        match parse(&words, &FixedNames::default()) {
            Ok(Parsed::Change(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_of_every_command_of_ipvsadm_requests_the_same_change() {
        for line in [
            "-A -t 198.51.100.1:80 -s wlc",
            "-A -u [2001:db8::1]:53 -s rr -o",
            "-A --sctp-service 198.51.100.1:80 -s sh -b sh-port",
            "-A -f 7 -6 -s mh -p 300 -M 64",
            "-A -t 198.51.100.1:80 -s wrr -p 60 -M 255.255.255.0",
            "-A -u 198.51.100.1:5060 -s rr -p 60 --pe sip",
            "-E -t 198.51.100.1:80 -s rr --client-address proxy",
            "-E -t 198.51.100.1:80 -s rr --syn-proxy auto",
            "-D -f 3000000000",
            "-a -t 198.51.100.1:80 -r 192.0.2.1:8080 -m -w 5 -x 100 -y 80",
            "-a -t 198.51.100.1:80 -r 192.0.2.1:80 --fullnat -w 1",
            "-e -f 1 -r 192.0.2.1:0 -i -w 0 --tun-type gue --tun-port 6080 --tun-csum",
            "-e -f 1 -r 192.0.2.1:0 -i -w 0 --tun-type gre --tun-nocsum",
            "-d -t [2001:db8::1]:80 -r [2001:db8::2]:80",
            "-C",
            "-Z",
            "-Z -u 198.51.100.1:53",
            "--set 900 120 300",
            "--start-daemon backup --mcast-interface eth0 --syncid 5 --mcast-group ff02::81 --mcast-ttl 3",
            "--start-daemon master --mcast-interface eth1 --syncid 5 --sync-peers 192.0.2.2,198.51.100.2",
            "--start-daemon backup --sync-peers 2001:db8::2 --mcast-ttl 1 --sync-maxlen 1200",
            "--stop-daemon master",
        ] {
            let command = parsed(line);
            let text = command_line(&command);
            assert_eq!(parsed(text.strip_prefix("xvsadm ").unwrap()), command, "{line} became {text}");
        }
        let text = "-a -t 198.51.100.1:80 -r 192.0.2.1:8080 -m -w 5 -x 100 -y 80";
        assert_eq!(command_line(&parsed(text)), format!("xvsadm {text}"));
    }

    #[test]
    fn peers_stand_in_place_of_a_group_and_only_where_a_daemon_starts() {
        let refused = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            parse(&words, &FixedNames::default()).err().map(|error| error.text).unwrap_or_default()
        };
        let start = "--start-daemon master --sync-peers";
        for (line, why) in [
            (
                format!("{start} 192.0.2.2,peer"),
                "--sync-peers takes addresses, separated by commas, not `peer'\n",
            ),
            (
                format!("{start} 192.0.2.2 --mcast-group 224.0.0.82"),
                "--mcast-group and --sync-peers exclude each other; leave one out\n",
            ),
            (
                "--stop-daemon master --sync-peers 192.0.2.2".to_owned(),
                "--sync-peers is for --start-daemon\n",
            ),
        ] {
            assert_eq!(refused(&line), why, "{line}");
        }
        // There may be routers between peers; IPv6 has a longer header.
        let Command::Add(Rule::Daemon(daemon)) = parsed(&format!("{start} 2001:db8::2")) else {
            panic!("a start")
        };
        assert_eq!((daemon.ttl, daemon.max_len_bytes), (64, 1452));
    }

    #[test]
    fn control_characters_in_a_name_are_escaped() {
        let Command::Add(Rule::Service { key, mut options }) = parsed("-A -t 198.51.100.1:80 -s rr") else {
            panic!()
        };
        options.scheduler += "\n\u{1b}[2J";
        let text = command_line(&Command::Add(Rule::Service { key, options }));
        assert_eq!(text, "xvsadm -A -t 198.51.100.1:80 -s rr\\n\\u{1b}[2J");
    }
}
