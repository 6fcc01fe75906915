//! `xvs explain`: the fate of a packet, and its reasons. The request changes nothing.
//!
//! The sentences are beside the decisions: drop reasons in `verdict.rs` and passed packets in `explain/pass_reason.rs`
//! of `dataplane`, the choice of a real server in `sched`, advice in `api/explain/report.rs` of `ctl`.

use std::io::Write;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::report::explain::{
    CandidateReport, CandidateState, Choice, Direction, Entry, NextHop, Origin, Proto, Question, Report,
    Rewrite, SentFrame, Summary, Tunnel, Verdict,
};
use xvs_proto::{Endpoint, Protocol};

use crate::output::exit::{DONE, Done};
use crate::output::text::{WIDTH, print, wrapped};

/// The arguments of `xvs explain`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The packet's protocol
    #[arg(long, value_parser = protocols(), required_unless_present = "frame", requires_all = ["from", "to"])]
    proto: Option<Proto>,
    /// The packet's source: ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = endpoint)]
    from: Option<Endpoint>,
    /// The packet's destination: ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = endpoint)]
    to: Option<Endpoint>,
    /// The interface that receives the packet [default: the interface of the route to its source]
    #[arg(long = "in", value_name = "INTERFACE")]
    interface: Option<String>,
    /// TCP flags, such as syn or fin,ack; `none` for none [default: syn]
    #[arg(long, value_name = "FLAGS", requires = "proto")]
    flags: Option<String>,
    /// Bytes of payload [default: 0]
    #[arg(long, value_name = "BYTES", requires = "proto")]
    length: Option<u16>,
    /// Time to live, or hop limit [default: 64]
    #[arg(long, requires = "proto")]
    ttl: Option<u8>,
    /// A whole frame in hexadecimal digits instead, from its Ethernet header on
    #[arg(long, value_name = "HEX", conflicts_with_all = ["proto", "from", "to"])]
    frame: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  xvs explain --proto tcp --from 203.0.113.9:4711 --to 198.51.100.1:80
  xvs explain --proto tcp --from 203.0.113.9:4711 --to 198.51.100.1:80 --flags fin,ack --in eth0

Nothing changes: no counter, connection, template, or state of a scheduler.";

/// An endpoint in the notation of the command line.
fn endpoint(text: &str) -> Result<Endpoint, &'static str> {
    text.parse::<std::net::SocketAddr>()
        .map(|socket| Endpoint::new(socket.ip(), socket.port()))
        .map_err(|_| "ADDRESS:PORT is needed, such as 198.51.100.1:80 or [2001:db8::1]:80")
}

fn protocols() -> impl TypedValueParser<Value = Proto> {
    PossibleValuesParser::new(Proto::NAMES.map(|(name, _)| name)).map(|name| {
        Proto::NAMES
            .into_iter()
            .find(|(known, _)| *known == name)
            .expect("the parser accepts only these names")
            .1
    })
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let question = Question {
        interface: arguments.interface.clone(),
        frame: arguments.frame.clone(),
        proto: arguments.proto,
        from: arguments.from,
        to: arguments.to,
        flags: arguments.flags.clone(),
        length: arguments.length,
        ttl: arguments.ttl,
    };
    let report = question::explain(question).ask(director)?;
    print(&report, arguments.json, |report| screen(report), out)?;
    Ok(DONE)
}

/// The report as text.
fn screen(report: &Report) -> String {
    let packet = report.packet.as_ref().map_or("not a packet of a service".to_owned(), summary);
    let mut lines = vec![line("packet", &format!("{packet}; received on {}", report.interface))];
    lines.extend(report.about.as_ref().map(|about| line("about", &summary(about))));
    if report.mark != 0 || report.marked_by.is_some() {
        let rule = report.marked_by.as_ref().map(|rule| format!(", by the rule: {rule}"));
        lines.push(line("mark", &format!("{}{}", report.mark, rule.unwrap_or_default())));
    }
    lines.push(line("service", report.service.as_deref().unwrap_or("none")));
    lines.extend(report.met.as_ref().map(|met| {
        let then = match &report.connection {
            Some(after) if after.origin == Origin::Found => match report.direction {
                Some(Direction::Outbound) => "outbound",
                Some(Direction::Inbound) | None => "inbound",
            },
            _ => "it is replaced",
        };
        line("matches", &format!("{}; {then}", connection(met)))
    }));
    lines.extend(report.template.as_ref().map(|template| line("template", &entry(template))));
    lines.extend(report.quic.as_ref().map(|quic| line("QUIC", quic)));
    lines.extend(report.choice.iter().flat_map(choice));
    lines.extend(report.health.iter().map(|trouble| line("health", trouble)));
    lines.extend(report.connection.as_ref().map(|after| line("connection", &entry(after))));
    lines.extend(report.offload.as_ref().map(|offload| line("offload", offload)));
    lines.extend(report.next_hop.as_ref().map(|hop| line("next hop", &next_hop(hop))));
    let reason = report.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let why = report.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let (verdict, sends) = match report.verdict {
        Verdict::Transmit => ("sent", "sent"),
        Verdict::Pass => ("passed to the kernel", "reply"),
        Verdict::Drop => ("dropped", "reply"),
        Verdict::Consumed => ("consumed", "reply"),
    };
    lines.push(line("verdict", &format!("{verdict}{reason}{why}")));
    lines.extend(report.advice.as_ref().map(|advice| line("to do", advice)));
    lines.extend(report.rewrite.as_ref().map(|change| line("rewrite", &rewrite(change))));
    lines.extend(report.sent.iter().map(|frame| line(sends, &sent(frame))));
    lines.extend(report.caveats.iter().map(|caveat| line("note", &caveat.what)));
    lines.concat()
}

fn summary(packet: &Summary) -> String {
    let Summary { from, to, ttl, bytes, .. } = packet;
    let ends = match packet.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => format!("{from} -> {to}"),
        _ => format!("{} -> {}", from.addr, to.addr),
    };
    let flags = match packet.flags.as_deref() {
        None => String::new(),
        Some("") => ", no flags".to_owned(),
        Some(flags) => format!(", {flags}"),
    };
    let fragment = if packet.fragment { ", a fragment" } else { "" };
    format!("{} {ends}{flags}, TTL {ttl}, {bytes} bytes{fragment}", protocol(packet.protocol))
}

fn protocol(protocol: Protocol) -> String {
    match protocol {
        Protocol::IPIP => "IP in IP".to_owned(),
        Protocol::IPV6 => "IPv6 in IP".to_owned(),
        Protocol::GRE => "GRE".to_owned(),
        Protocol::ESP => "ESP".to_owned(),
        Protocol::AH => "AH".to_owned(),
        Protocol::ICMPV6 => "ICMPv6".to_owned(),
        other => other.to_string(),
    }
}

/// A connection or a template, and whether the packet creates it.
fn entry(entry: &Entry) -> String {
    let before = if entry.origin == Origin::Made { "new: " } else { "" };
    format!("{before}{}", connection(entry))
}

fn connection(entry: &Entry) -> String {
    let Entry { client, virtual_endpoint, dest, method, state, .. } = entry;
    let local = entry.local.map(|local| format!(" from {local}")).unwrap_or_default();
    let call = entry.call_id.as_ref().map(|call| format!(", Call-ID {call}")).unwrap_or_default();
    let seconds = entry.expires_millis.div_ceil(1000);
    let expires = format!("{}:{:02}", seconds / 60, seconds % 60);
    format!(
        "{} {client} -> {virtual_endpoint} -> {dest}{local}, {method}, {state}, expires in {expires}{call}",
        entry.protocol
    )
}

/// The scheduler, and the table of its candidates.
fn choice(choice: &Choice) -> Vec<String> {
    let mut lines = vec![line("scheduler", &format!("{}: {}", choice.scheduler, choice.rule))];
    if choice.candidates.is_empty() {
        lines.push(line("", "the service has no real server; `xvsadm -a` adds one"));
        return lines;
    }
    lines.push(row(["", "Real server", "Forward", "Weight", "Active", "InAct", "Standing"]));
    for candidate in &choice.candidates {
        lines.push(row([
            if candidate.standing == CandidateState::Chosen { "*" } else { "" },
            &candidate.server.to_string(),
            &candidate.method,
            &candidate.weight.to_string(),
            &candidate.active.to_string(),
            &candidate.inactive.to_string(),
            &standing(candidate),
        ]));
    }
    lines
}

fn row([mark, server, method, weight, active, inactive, standing]: [&str; 7]) -> String {
    let row = format!("{mark:>2} {server:<21} {method:<7} {weight:>6} {active:>6} {inactive:>5}  {standing}");
    row.trim_end().to_owned() + "\n"
}

/// Why a candidate is chosen or not.
fn standing(candidate: &CandidateReport) -> String {
    let connections = u64::from(candidate.active) + u64::from(candidate.inactive);
    let upper = u64::from(candidate.upper_threshold.unwrap_or(0));
    match candidate.standing {
        CandidateState::Quiescent => "weight 0: quiescent".to_owned(),
        CandidateState::Disabled => "disabled; `xvs enable` ends that".to_owned(),
        CandidateState::Overloaded if connections >= upper => {
            format!("overloaded: {connections} of {upper} connections")
        }
        CandidateState::Overloaded => {
            format!("overloaded: {connections} of {upper}, until below its lower threshold")
        }
        CandidateState::SlowStart => {
            format!("slow start: it gets {} % of its share", candidate.slow_start_percent.unwrap_or_default())
        }
        // With figures, the asterisk marks the chosen one.
        CandidateState::Chosen if candidate.figures.is_empty() => "chosen".to_owned(),
        CandidateState::Chosen | CandidateState::PassedOver => {
            let mut figures = Vec::new();
            for figure in &candidate.figures {
                let value = format!("{:.3}", figure.value);
                figures.push(format!(
                    "{} {}",
                    figure.name,
                    value.trim_end_matches('0').trim_end_matches('.')
                ));
            }
            figures.join(", ")
        }
    }
}

fn next_hop(next_hop: &NextHop) -> String {
    let NextHop { to, via, interface, mac, mtu, rule, problem } = next_hop;
    let mut text = to.to_string();
    if let Some(via) = via.filter(|via| via != to) {
        text += &format!(" via {via}");
    }
    if let Some(interface) = interface {
        text += &format!(" on {interface}");
    }
    if let (Some(mac), Some(mtu)) = (mac, mtu) {
        text += &format!(", link address {mac}, MTU {mtu}");
    }
    if let Some(rule) = rule {
        text += &format!(", by policy rule {rule}");
    }
    if let Some(problem) = problem {
        text += &format!(": {problem}");
    }
    text
}

fn rewrite(rewrite: &Rewrite) -> String {
    let Rewrite { method, from, to, tunnel, ttl, pieces } = rewrite;
    let mut changes = Vec::new();
    changes.extend(from.as_ref().map(|new| format!("now from {}", end(new))));
    changes.extend(to.as_ref().map(|new| format!("now to {}", end(new))));
    changes.extend(
        tunnel.as_ref().map(|Tunnel { kind, from, to }| format!("inside {kind} from {from} to {to}")),
    );
    changes.push(format!("TTL {ttl}"));
    if *pieces > 1 {
        changes.push(format!("in {pieces} fragments"));
    }
    format!("{method}: {}", changes.join(", "))
}

/// An end of a connection; an address without a port keeps the port.
fn end(endpoint: &Endpoint) -> String {
    match endpoint.port {
        0 => endpoint.addr.to_string(),
        _ => endpoint.to_string(),
    }
}

fn sent(sent: &SentFrame) -> String {
    let packet = sent.packet.as_ref().map_or("not a packet".to_owned(), summary);
    format!("{packet}, on {}", sent.interface)
}

/// A line with its label.
fn line(label: &str, text: &str) -> String {
    wrapped(&format!("{label:<INDENT$}"), text, INDENT, WIDTH - 1)
}

/// Columns of the label.
const INDENT: usize = 12;

#[cfg(test)]
mod tests {
    use xvs_ctl::in_memory::InMemory;
    use xvs_ipvsadm::{SystemResolver, read_rules};
    use xvs_model::config::load_feedback::Feedback;
    use xvs_model::config::settings::Ipvs;
    use xvs_model::protocol::question::{ControlRequest, Reply, Request};
    use xvs_model::report::health::{CheckState, HealthReport, sample};
    use xvs_proto::MacAddr;
    use xvs_proto::network::Network;

    use crate::explain::*;

    /// The printed report of a client's packet to a service without a real server. `service` is the name that the
    /// health report has for its virtual server.
    fn explained(service: &str, rule: &str) -> String {
        let (mut report, health) = asked(service, rule);
        report.add_health(&health, sample::NOW);
        screen(&report)
    }

    /// The report without health, and the health report.
    fn asked(service: &str, rule: &str) -> (Report, HealthReport) {
        let mut director = InMemory::new(Ipvs::default(), Feedback::default());
        let mac = MacAddr([2; 6]);
        let add =
            |network: &mut Network| network.add_link("wan", mac, &[([198, 51, 100, 1].into(), 24)], 1500);
        director.change_network(|network| add(network).map(drop)).unwrap();
        let rules = read_rules(rule, &SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        director.call(ControlRequest::Restore(commands).into()).unwrap();
        let question = Question {
            proto: Some(Proto::Tcp),
            from: Some(endpoint("198.51.100.9:4711").unwrap()),
            to: Some(endpoint("198.51.100.1:80").unwrap()),
            interface: None,
            frame: None,
            flags: None,
            length: None,
            ttl: None,
        };
        let Reply::Explained(report) = director.call(Request::Explain(question)).unwrap() else { panic!() };
        let mut server =
            sample::virtual_server("198.51.100.1", vec![sample::real_server("192.0.2.12", CheckState::Down)]);
        server.services = vec![service.to_owned()];
        (*report, sample::report(vec![server]))
    }

    #[test]
    fn a_real_server_that_is_down_is_reported_with_the_reason() {
        let rule = "-A -t 198.51.100.1:80 -s rr\n";
        let text = explained("TCP 198.51.100.1:80", rule);
        let told = "health      192.0.2.12:80 has been down for 12 s: connection refused by\n            192.0.2.12:80\n";
        assert!(text.contains(told) && text.contains("verdict     dropped (no_destination)"), "{text}");
        assert!(!explained("TCP 198.51.100.1:81", rule).contains("health"));
    }

    #[test]
    fn a_connection_to_a_real_server_that_is_down_is_reported_and_one_to_another_is_not() {
        for (dest, is_told) in [("192.0.2.12:80", true), ("192.0.2.13:80", false)] {
            let (mut report, health) = asked("TCP 198.51.100.1:80", "-A -t 198.51.100.1:80 -s rr -p 50\n");
            report.choice = None;
            report.connection = Some(Entry {
                origin: Origin::Made,
                protocol: Protocol::TCP,
                client: endpoint("198.51.100.9:4711").unwrap(),
                virtual_endpoint: endpoint("198.51.100.1:80").unwrap(),
                dest: endpoint(dest).unwrap(),
                local: None,
                method: "Masq".to_owned(),
                state: "SYN_RECV".to_owned(),
                expires_millis: 60_000,
                packets: 1,
                call_id: None,
            });
            report.add_health(&health, sample::NOW);
            assert_eq!(screen(&report).contains("health      192.0.2.12:80 has been down"), is_told);
        }
    }
}
