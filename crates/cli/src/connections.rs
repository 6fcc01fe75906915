//! `xvs connections`: the connections of a client, a service or a real server.
//!
//! Prints each connection as it arrives, so the whole listing is never in memory. ipvsadm's listing is `xvsadm -Lnc`.

use std::collections::BTreeSet;
use std::io;
use std::io::{BufWriter, Write};

use clap::Args;
use serde::Serialize;
use xvs_dataplane::conn::sctp::SctpState;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::conn::udp;
use xvs_ipvsadm::{LineError, ServiceArgument, SystemResolver};
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::report::connection::{ConnectionRow, EndpointRange, Filter, Kind};
use xvs_sched::ServiceKey;

use crate::output::exit::{DONE, Done};

/// The arguments of `xvs connections`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Connections of these clients only; an IPv6 port needs brackets, as in `[2001:db8::1]:80`
    #[arg(long, value_name = "ADDRESS[/LEN][:PORT]")]
    client: Option<EndpointRange>,
    #[command(flatten)]
    service: ServiceFilter,
    /// Connections to these real servers only
    #[arg(long, value_name = "ADDRESS[/LEN][:PORT]")]
    dest: Option<EndpointRange>,
    /// Connections in one of these states only
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = state)]
    state: Vec<String>,
    /// List persistence templates instead of connections
    #[arg(long)]
    templates: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the number of connections only
    #[arg(long)]
    count: bool,
}

/// A service whose connections or packets are selected.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct ServiceFilter {
    #[command(flatten)]
    service: ServiceArgument,
    /// The service as listings name it: "TCP 198.51.100.100:80", "FWM 7"
    #[arg(long = "service", value_name = "SERVICE", group = "service", hide = true)]
    listed: Option<ServiceKey>,
}

impl ServiceFilter {
    /// The service; `None`: all.
    pub(super) fn key(&self) -> Result<Option<ServiceKey>, LineError> {
        Ok(self.service.key(&SystemResolver::default())?.or(self.listed))
    }
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let mut out = BufWriter::new(out);
    let filter = Filter {
        kind: if arguments.templates { Kind::Templates } else { Kind::Connections },
        client: arguments.client,
        dest: arguments.dest,
        service: arguments.service.key()?,
        server: None,
        states: arguments.state.clone(),
    };
    if arguments.count {
        let count = question::count_connections(filter).ask(director)?;
        match arguments.json {
            true => writeln!(out, "{}", serde_json::to_string(&Count { count })?)?,
            false => writeln!(out, "{count}")?,
        }
    } else if arguments.json {
        let mut separator = "[\n";
        director.find(&filter, &mut |row| {
            out.write_all(std::mem::replace(&mut separator, ",\n").as_bytes())?;
            serde_json::to_writer(&mut out, &row).map_err(io::Error::from)
        })?;
        out.write_all(if separator == "[\n" { b"[]\n" } else { b"\n]\n" })?;
    } else {
        let mut head =
            Some(line(["Pro", "Expires", "State", "Client", "Virtual", "Real server", "Packets", "How"]));
        director.find(&filter, &mut |row| {
            out.write_all(head.take().unwrap_or_default().as_bytes())?;
            out.write_all(text(&row).as_bytes())
        })?;
        if head.is_some() {
            writeln!(out, "no {} matches", if arguments.templates { "template" } else { "connection" })?;
        }
    }
    out.flush()?;
    Ok(DONE)
}

/// The JSON that `--count` prints.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Count {
    /// The number of connections, or of templates, that match.
    count: u64,
}

/// A row as text.
fn text(row: &ConnectionRow) -> String {
    let mut how = Vec::new();
    let mut packets = "-".to_owned();
    if let Some(detail) = &row.detail {
        packets = detail.packets.to_string();
        how.push(detail.method.listed().to_owned());
        how.extend(row.local.map(|local| format!("from {local}")));
        how.extend((detail.controls > 0).then(|| format!("controls {}", detail.controls)));
        how.extend(detail.flags.iter().cloned());
    }
    how.extend(row.engine.as_ref().map(|engine| format!("{} {}", engine.name, engine.data)));
    line([
        &row.protocol.to_string(),
        &format!("{:02}:{:02}", row.expires_seconds / 60, row.expires_seconds % 60),
        &row.state,
        &row.client.to_string(),
        &row.virtual_endpoint.to_string(),
        &row.dest.to_string(),
        &packets,
        &how.join(", "),
    ])
}

fn line([protocol, expires, state, client, service, dest, packets, how]: [&str; 8]) -> String {
    format!(
        "{protocol:<4} {expires:>7} {state:<11} {client:<21} {service:<21} {dest:<21} {packets:>7} {how}\n"
    )
}

/// A state's name, in letters of either case.
fn state(text: &str) -> Result<String, String> {
    let mut known = BTreeSet::from([udp::STATE_NAME, "ASSURED"]);
    known.extend((0..=TcpState::SynAck as u8).map(|number| TcpState::of(number).name()));
    known.extend((0..=SctpState::Closed as u8).map(|number| SctpState::of(number).name()));
    let name = text.to_ascii_uppercase();
    if known.contains(name.as_str()) {
        return Ok(name);
    }
    Err(format!("states are {}", Vec::from_iter(known).join(", ")))
}

#[cfg(test)]
mod tests {
    use xvs_model::report::connection::{ConnectionDetail, EngineData};
    use xvs_proto::{Endpoint, Protocol};
    use xvs_sched::ForwardingMethod;

    use crate::connections::*;

    #[test]
    fn a_row_shows_every_field_in_columns() {
        let end = |last, port| Endpoint::new([192, 0, 2, last], port);
        let detail = ConnectionDetail {
            service: None,
            server: None,
            method: ForwardingMethod::FullNat,
            packets: 12,
            controls: 0,
            template: false,
            flags: vec!["proxy".to_owned(), "told".to_owned()],
        };
        let row = ConnectionRow {
            protocol: Protocol::TCP,
            expires_seconds: 899,
            state: "ESTABLISHED".to_owned(),
            client: end(7, 40_000),
            virtual_endpoint: end(100, 80),
            dest: end(11, 8080),
            local: Some(end(1, 1024)),
            engine: None,
            detail: Some(detail.clone()),
        };
        assert_eq!(
            text(&row),
            "TCP    14:59 ESTABLISHED 192.0.2.7:40000       192.0.2.100:80        192.0.2.11:8080            12 \
             FullNat, from 192.0.2.1:1024, proxy, told\n"
        );
        let engine = Some(EngineData { name: "sip".to_owned(), data: "abc@x".into() });
        let detail = Some(ConnectionDetail { controls: 2, flags: Vec::new(), ..detail });
        let mut template = ConnectionRow { local: None, engine, detail, ..row };
        assert!(text(&template).ends_with(" 12 FullNat, controls 2, sip abc@x\n"));
        template.engine.as_mut().unwrap().data = "\x1b[2J\n".into();
        assert!(text(&template).ends_with(", sip \\u{1b}[2J\\n\n"));
    }

    #[test]
    fn states_have_the_names_of_listings_and_an_unknown_state_is_refused_with_the_list_of_names() {
        assert_eq!(state("time_wait").unwrap(), "TIME_WAIT");
        assert_eq!(state("S-ACK-SENT").unwrap(), "S-ACK-SENT");
        assert!(state("OPEN").unwrap_err().contains("ESTABLISHED, FIN_WAIT"));
    }
}
