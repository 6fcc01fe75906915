//! The log of connections with real sockets: each connection is in the file, and nfcapd reads the same from IPFIX.
//!
//! Each test has a cluster of its own. Needs root. Not here: rotation and a full disk (`connection_log/` of xvsd).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use xvs::clients::{self, Asker};
use xvs::cluster::{VIP, VIP6, complete, real_server, real_server6, succeed, virtual_endpoint};
use xvs::director::Protocol;
use xvs::servers::Echo;
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

const DATAGRAMS: u16 = 5300;
const COLLECTOR: u16 = 4739;
const FLOWS: usize = 20;
const ROUNDS: usize = 5;

/// nfcapd on the first real server; the folder gets its files.
fn collector(cluster: &Cluster, folder: &Path) -> Child {
    fs::create_dir_all(folder).expect("the cluster's folder takes a folder");
    let mut command = cluster.command(Host::RealServer(1), "nfcapd");
    command.arg("-w").arg(folder).args(["-t", "3600", "-p", &COLLECTOR.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("nfdump is installed");
    let port = format!(":{COLLECTOR}");
    wait::until("nfcapd listens", || {
        let sockets = succeed(cluster.command(Host::RealServer(1), "ss").args(["-lun"]));
        sockets.contains(&port).then_some(())
    });
    child
}

/// Ends nfcapd, which closes its file, and returns the records of its folder as nfdump reads them.
fn ended(mut nfcapd: Child, folder: &Path) -> Vec<Value> {
    kill_process(Pid::from_child(&nfcapd), Signal::TERM).expect("it runs");
    nfcapd.wait().expect("it ends");
    let output = complete(Command::new("nfdump").arg("-R").arg(folder).args(["-o", "json"]));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("nfdump prints JSON")
}

/// The collector has a record that says the same as a line of the file. nfdump 1.7 shows the translated ports of all
/// connections, but no translated address of IPv6.
fn assert_collected(records: &[Value], line: &Value) {
    let endpoint =
        |key: &str| line[key].as_str().map(|text| text.parse::<SocketAddr>().expect("an endpoint"));
    let [client, service, server] =
        ["client", "virtual", "real_server"].map(|key| endpoint(key).expect("each line has it"));
    let local = endpoint("local").unwrap_or(client);
    let events = if line["event"] == "begin" { [1, 4, 6] } else { [2, 5, 7] };
    let plain = |addr: IpAddr, side: &str| match addr {
        IpAddr::V4(_) => format!("{side}4_addr"),
        IpAddr::V6(_) => format!("{side}6_addr"),
    };
    // Connections to different services may have the same port of the client.
    let found = records.iter().find(|record| {
        record["src_port"] == client.port()
            && record["dst_port"] == service.port()
            && record[plain(client.ip(), "src")] == client.ip().to_string().as_str()
            && events.iter().any(|event| number(&record["nat_event_id"]) == Some(*event))
    });
    let record = found.unwrap_or_else(|| panic!("{line}\n{records:#?}"));
    assert_eq!(record[plain(service.ip(), "dst")], service.ip().to_string().as_str(), "{record:#}");
    for (side, endpoint) in [("src", local), ("dst", server)] {
        if endpoint.is_ipv4() {
            assert_eq!(record[format!("{side}4_xlt_ip")], endpoint.ip().to_string().as_str(), "{record:#}");
        }
        let port = number(&record[format!("{side}_xlt_port")]);
        assert_eq!(port, Some(endpoint.port().into()), "{record:#}");
    }
    for key in ["in_packets", "in_bytes", "out_packets", "out_bytes"] {
        // nfdump shows no counts of replies if they are 0.
        assert_eq!(number(&record[key]).unwrap_or(0), line[key].as_u64().expect("a number"), "{record:#}");
    }
}

/// A number of nfdump, which 1.7.1 prints as a text in some fields.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect()
}

#[test]
fn every_connection_is_in_the_file_and_at_the_collector_with_its_server_and_all_its_packets() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _echoes = [1, 2]
        .map(|number| Echo::start(&cluster, Host::RealServer(number), (real_server(number), DATAGRAMS)));
    let [path, flows] = ["log/connections.json", "flows"].map(|name| cluster.state().join(name));
    let nfcapd = collector(&cluster, &flows);
    let toml = cluster.state().join("xvs.toml");
    // As a user, who gets the folder, and with the filters of system calls.
    let keys = format!(
        "user = \"daemon\"\n[connection_log]\nfile = {path:?}\ncollector = \"{}:{COLLECTOR}\"\nbegins = true\n",
        real_server(1)
    );
    fs::write(&toml, keys).expect("the cluster's folder takes files");
    let director = Director::start_with(&cluster, Workers::Two, &["--config", &toml.display().to_string()]);
    director.add_service(Protocol::Udp, DATAGRAMS, Method::Nat);
    director.adm("--set 0 0 1");

    let flows_of: Vec<_> = (0..FLOWS).map(|_| Asker::new(&cluster, virtual_endpoint(DATAGRAMS))).collect();
    let mut servers = BTreeMap::new();
    for _ in 0..ROUNDS {
        for flow in &flows_of {
            let name = flow.ask(&[0xa5; 100]);
            let number = name.trim_start_matches("rs").parse().expect("a real server's name has its number");
            servers.insert(flow.addr().to_string(), format!("{}:{DATAGRAMS}", real_server(number)));
        }
    }
    let of_event = |event: &str| {
        let all = lines(&path).into_iter();
        all.filter(|line| line["event"] == event).collect::<Vec<_>>()
    };
    wait::until("all connections have ended", || (of_event("end").len() >= FLOWS).then_some(()));
    let ends = of_event("end");
    assert_eq!((of_event("begin").len(), ends.len()), (FLOWS, FLOWS));
    for flow in &flows_of {
        let client = flow.addr().to_string();
        let end = ends.iter().find(|end| end["client"] == client.as_str()).expect("each flow is logged");
        assert_eq!(end["real_server"], servers[&client].as_str());
        assert_eq!(end["virtual"], virtual_endpoint(DATAGRAMS).to_string().as_str());
        assert_eq!((&end["reason"], &end["method"]), (&"timeout".into(), &"Masq".into()));
        // 20 bytes of IPv4, 8 of UDP; the name of the server and a space in the reply. The XDP program has forwarded
        // most of these packets.
        assert_eq!(
            (&end["in_packets"], &end["in_bytes"]),
            (&flow.sent().into(), &(128 * flow.sent()).into())
        );
        let replies = end["out_packets"].as_u64().expect("a number");
        assert!(replies >= ROUNDS as u64 && end["out_bytes"] == 132 * replies, "{end}");
    }
    let status = director.status();
    assert!(status.contains(&format!("{}: {} records, 0 lost", path.display(), 2 * FLOWS)), "{status}");
    assert!(!status.contains("connection_log:") && !status.contains("system call"), "{status}");

    let records = ended(nfcapd, &flows);
    assert_eq!(records.len(), 2 * FLOWS, "{records:#?}");
    ends.iter().for_each(|end| assert_collected(&records, end));
}

/// A connection of the client with nginx, kept alive.
struct Kept {
    stream: TcpStream,
    service: SocketAddr,
    server: SocketAddr,
}

impl Kept {
    fn open(cluster: &Cluster, (service, server): (SocketAddr, SocketAddr)) -> Self {
        let stream = cluster.run(Host::Client, || clients::connect(service)).expect("xvs forwards it");
        Self { stream, service, server }
    }

    fn ask(&mut self) {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: xvs\r\n\r\n").expect("the connection lives");
        let mut answer = [0; 4096];
        let length = self.stream.read(&mut answer).expect("nginx answers");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{}", answer[..length].escape_ascii());
    }

    /// Ends it by a reset, and returns the lines of the file that it is to have.
    fn reset(self) -> [Value; 2] {
        set_socket_linger(&self.stream, Some(Duration::ZERO)).expect("a socket option");
        let client = self.stream.local_addr().expect("it is connected").to_string();
        let line = |event| {
            let (service, server) = (self.service.to_string(), self.server.to_string());
            json!({ "event": event, "client": client, "virtual": service, "real_server": server })
        };
        ["begin", "end"].map(line)
    }
}

#[test]
fn a_connection_that_outlives_a_take_over_has_its_begin_and_its_end_in_the_log_with_both_families() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let [path, flows] = ["log/connections.json", "flows"].map(|name| cluster.state().join(name));
    let nfcapd = collector(&cluster, &flows);
    let toml = cluster.state().join("xvs.toml");
    let keys = format!(
        "[connection_log]\nfile = {path:?}\ncollector = \"{}:{COLLECTOR}\"\nbegins = true\n",
        real_server(1)
    );
    fs::write(&toml, keys).expect("the cluster's folder takes files");
    let toml = toml.display().to_string();
    let arguments = ["--config", &toml, "--hold", "10s"];
    let director = Director::start_with(&cluster, Workers::Two, &arguments);
    director.xvs("laddr add 192.0.2.1");
    director.xvs("laddr add 2001:db8:2::1");
    let (four, six) = (SocketAddr::from((real_server(1), 80)), SocketAddr::from((real_server6(1), 80)));
    let services = [
        (SocketAddr::from((VIP, 80)), four, "-m"),
        (SocketAddr::from((VIP6, 80)), six, "-m"),
        (SocketAddr::from((VIP, 81)), four, "--fullnat"),
        (SocketAddr::from((VIP6, 81)), six, "--fullnat"),
        // Clients and server of different families.
        (SocketAddr::from((VIP6, 82)), four, "--fullnat"),
        (SocketAddr::from((VIP, 82)), six, "--fullnat"),
    ];
    for (service, server, method) in services {
        director.adm(&format!("-A -t {service} -s rr"));
        director.adm(&format!("-a -t {service} -r {server} {method}"));
    }
    let open = || services.map(|(service, server, _)| Kept::open(&cluster, (service, server)));
    let mut kept = Vec::from(open());
    kept.iter_mut().for_each(Kept::ask);
    let successor = Director::take_over(&cluster, Workers::Two, &arguments);
    let director = successor.unwrap_or_else(|log| panic!("{log}"));
    kept.extend(open());
    kept.iter_mut().for_each(Kept::ask);

    let expected: Vec<_> = kept.into_iter().flat_map(Kept::reset).collect();
    wait::until("all connections have ended", || (lines(&path).len() >= expected.len()).then_some(()));
    let logged = lines(&path);
    assert_eq!(logged.len(), expected.len(), "{logged:#?}");
    let records = ended(nfcapd, &flows);
    assert_eq!(records.len(), expected.len(), "{records:#?}");
    for (place, wanted) in expected.iter().enumerate() {
        let keys = ["event", "client", "virtual", "real_server"];
        let found = logged.iter().find(|line| keys.iter().all(|key| line[key] == wanted[key]));
        let line = found.unwrap_or_else(|| panic!("{wanted}\n{logged:#?}"));
        assert_eq!(line["local"].is_string(), line["method"] == "FullNat", "{line}");
        if line["event"] == "end" {
            assert_eq!((&line["state"], &line["reason"]), (&"CLOSE".into(), &"closed".into()), "{line}");
            // The second process counts from its own begin, and knows that of its own connections alone.
            let is_older = place < 2 * services.len();
            assert_eq!(line["begun_at_millis"].is_null(), is_older, "{line}");
            // A request and a reset; of its own connections also SYN and ACK.
            let least = if is_older { 2 } else { 4 };
            assert!(line["in_packets"].as_u64() >= Some(least), "{line}");
        }
        assert_collected(&records, line);
    }
    assert!(director.status().contains("0 lost"), "{}", director.status());
}
