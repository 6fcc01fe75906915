//! What xvs has read, in lines that compare with those of `keepalived.rs`.

use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::service::Netmask;
use xvs_model::health_checks::check::{Check, ExitCodeMeaning, Http, Probe, Target};
use xvs_model::health_checks::virtual_server::{Configuration, VirtualServer};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

/// The virtual servers, real servers and checks.
pub(crate) fn found(configuration: &Configuration) -> Vec<String> {
    let mut found = Vec::new();
    for one in &configuration.virtual_servers {
        found.push(virtual_server(one));
        if let Some(sorry) = &one.sorry_server {
            let Endpoint { addr, port } = sorry.endpoint;
            found.push(format!("sorry {addr} {port} {} inhibit {}", method(&sorry.options), sorry.inhibit));
        }
        for server in &one.real_servers {
            let (Endpoint { addr, port }, options) = (server.endpoint, &server.options);
            found.push(format!(
                "server {addr} {port} weight {} {} limits {} {} inhibit {} up {} down {}",
                options.weight.0,
                method(options),
                options.lower_threshold,
                options.upper_threshold,
                server.inhibit_on_failure,
                server.notify_up.is_some(),
                server.notify_down.is_some(),
            ));
        }
    }
    for one in &configuration.virtual_servers {
        let protocol = protocol(one);
        for server in &one.real_servers {
            let Endpoint { addr, port } = server.endpoint;
            found.extend(server.checks.iter().map(|it| check(it, &format!("[{addr}]:{protocol}:{port}"))));
        }
    }
    found
}

fn protocol(one: &VirtualServer) -> &'static str {
    match one.protocol() {
        Some(Protocol::TCP) => "tcp",
        Some(Protocol::UDP) => "udp",
        Some(_) => "sctp",
        None => "none",
    }
}

fn virtual_server(one: &VirtualServer) -> String {
    let services = one.services.iter().map(|(key, _)| match key {
        ServiceKey::Address { endpoint: Endpoint { addr, port }, .. } => format!("{addr} {port}"),
        ServiceKey::Mark { mark, .. } => format!("mark {mark}"),
    });
    let (key, options) = &one.services[0];
    let name = match (one.group(), key) {
        (Some(group), _) => format!("[{group}]:{}", one.ordinal),
        (None, ServiceKey::Address { endpoint, .. }) => {
            format!("[{}]:{}:{}", endpoint.addr, protocol(one), endpoint.port)
        }
        (None, ServiceKey::Mark { mark, .. }) => format!("FWM {mark}"),
    };
    let own_flags = matches!(options.scheduler.as_str(), "sh" | "mh");
    let flags = [1, 2, 4].map(|bit| options.flags.0 & bit != 0 && !(own_flags && bit == 4));
    let granularity = match options.netmask {
        mask if mask == Netmask::host(Family::V4) || mask == Netmask::host(Family::V6) => "-".to_owned(),
        Netmask::V4(mask) => mask.to_string(),
        Netmask::V6(bits) => bits.to_string(),
    };
    format!(
        "service {name} {} {} {flags:?} ops {} persistent {} {granularity} quorum {} {} omega {} up {} down {}",
        services.collect::<Vec<_>>().join(" "),
        options.scheduler,
        options.one_packet,
        options.persistence_timeout_seconds.unwrap_or(0),
        one.quorum,
        one.hysteresis,
        one.omega,
        one.quorum_up.is_some(),
        one.quorum_down.is_some(),
    )
}

fn method(options: &DestinationOptions) -> String {
    let checksum = |kind| match kind {
        TunnelChecksum::Without => "",
        TunnelChecksum::Full => " checksum",
        TunnelChecksum::Remote => " remote checksum",
    };
    match (options.method, options.tunnel) {
        (ForwardingMethod::Nat, _) => "nat".to_owned(),
        (ForwardingMethod::DirectRouting, _) => "dr".to_owned(),
        (ForwardingMethod::Tunnel, Tunnel::Ipip) => "tun ipip".to_owned(),
        (ForwardingMethod::Tunnel, Tunnel::Gue { port, checksum: kind }) => {
            format!("tun gue {port}{}", checksum(kind))
        }
        (ForwardingMethod::Tunnel, Tunnel::Gre { checksum: kind }) => format!("tun gre{}", checksum(kind)),
        (other, _) => format!("{other:?}"),
    }
}

fn check(check: &Check, server: &str) -> String {
    let timing = check.timing;
    let retry = timing.fall - 1;
    let pause = if retry == 0 { String::new() } else { timing.retry_interval.as_micros().to_string() };
    let alpha = if timing.begins_down { "yes" } else { "no" };
    let times = format!(
        " alpha {alpha} every {} warmup {} retry {retry} {pause}",
        timing.interval.as_micros(),
        timing.warmup.as_micros()
    );
    let to = |target: &Target| {
        let Target { endpoint, source, source_port, interface, mark } = target;
        // keepalived dumps no port without an address.
        let from = source.map_or("-".to_owned(), |addr| format!("[{addr}]:{}", source_port.unwrap_or(0)));
        let interface = interface.as_deref().unwrap_or("-");
        let seconds = timing.timeout.as_secs_f64();
        let (addr, port) = (endpoint.ip(), endpoint.port());
        format!("{times} to [{addr}]:{port} from {from} by {interface} mark {mark} within {seconds:.6}")
    };
    let rest = match &check.probe {
        Probe::Tcp(target) => format!("TCP_CHECK{}", to(target)),
        Probe::Ping(target) => format!("PING_CHECK{}", to(target)),
        Probe::Http(target, own) => {
            let kind = if own.tls.is_some() { "SSL_GET" } else { "HTTP_GET" };
            format!("{kind}{}{}", to(target), http(own))
        }
        Probe::Smtp(target, name) => format!("SMTP_CHECK{} helo {name}", to(target)),
        Probe::Dns(target, dns) => format!("DNS_CHECK{} {} {}", to(target), dns.kind, dns.name),
        Probe::Udp(target, udp) => {
            let payload = udp.payload.as_ref().map_or("no".to_owned(), |payload| payload.len().to_string());
            let reply = udp.reply.as_ref().map_or(String::new(), |reply| {
                format!(" {} {} {}", reply.length.start(), reply.length.end(), reply.pattern.len())
            });
            format!("UDP_CHECK{} payload {payload} reply {}{reply}", to(target), udp.reply.is_some())
        }
        Probe::Script(script, meaning) => {
            let arguments: Vec<_> = script.argv.iter().skip(1).map(|word| format!("'{word}'")).collect();
            let dynamic = if *meaning == ExitCodeMeaning::Dynamic { "YES" } else { "NO" };
            let seconds = timing.timeout.as_secs();
            format!("MISC_CHECK{times} {} timeout {seconds} dynamic {dynamic}", arguments.join(" "))
        }
        Probe::File(file) => format!("FILE_CHECK {}", file.name),
        other => format!("{other:?}"),
    };
    format!("check {server} {rest}")
}

fn http(http: &Http) -> String {
    let protocol = match (http.is_1_1, http.closes) {
        (true, _) => "1.1",
        (false, true) => "1.0C",
        (false, false) => "1.0",
    };
    let host = http.host.as_deref().unwrap_or("-");
    let mut line = format!(" http {protocol} host {host} fast {}", http.fast_recovery);
    if http.tls.is_some() {
        line += &format!(" sni {}", http.urls.iter().any(|url| url.server_name.is_some()));
    }
    for url in &http.urls {
        line += &format!(" url {}", url.path);
        if let Some(digest) = url.digest {
            line += " digest ";
            digest.iter().for_each(|byte| line += &format!("{byte:02x}"));
        }
        // As ranges in order, which do not touch.
        let has = |status: &u16| match &url.statuses[..] {
            [] => (200..300).contains(status),
            statuses => statuses.iter().any(|range| range.contains(status)),
        };
        let all: Vec<_> = (100..600).filter(has).collect();
        let ranges = all.chunk_by(|before, after| before + 1 == *after);
        let statuses: Vec<_> = ranges
            .map(|range| match range {
                [one] => one.to_string(),
                range => format!("{}-{}", range[0], range[range.len() - 1]),
            })
            .collect();
        line += &format!(" {}", statuses.join(" "));
        if let Some(host) = &url.host {
            line += &format!(" for {host}");
        }
        if let Some(pattern) = &url.pattern {
            line += &format!(" regex \"{}\"", pattern.text);
            if pattern.is_unwanted {
                line += " unwanted";
            }
            if pattern.least_offset > 0 || pattern.most_offset.is_some() {
                let most = pattern.most_offset.map(|most| format!(", max_offset = {most}"));
                line += &format!(" at {}{}", pattern.least_offset, most.unwrap_or_default());
            }
        }
    }
    line
}
