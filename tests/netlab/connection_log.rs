//! The log of connections with real sockets: each connection is in the file, and nfcapd reads the same from IPFIX.
//!
//! Each test has a cluster of its own. Needs root. Not here: rotation and a full disk (`connection_log/` of xvsd).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xvs::clients::Asker;
use xvs::cluster::{complete, real_server, succeed, virtual_endpoint};
use xvs::director::Protocol;
use xvs::servers::Echo;
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

const DATAGRAMS: u16 = 5300;
const COLLECTOR: u16 = 4739;
const FLOWS: usize = 20;
const ROUNDS: usize = 5;

/// nfcapd on the first real server; the folder gets its files.
fn collector(cluster: &Cluster, folder: &Path) -> std::process::Child {
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

/// The records of a folder as nfdump reads them.
fn collected(folder: &Path) -> Vec<Value> {
    let output = complete(Command::new("nfdump").arg("-R").arg(folder).args(["-o", "json"]));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("nfdump prints JSON")
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
    let mut nfcapd = collector(&cluster, &flows);
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

    // Its end closes its file.
    let process = Pid::from_child(&nfcapd);
    kill_process(process, Signal::TERM).expect("it runs");
    nfcapd.wait().expect("it ends");
    let records = collected(&flows);
    assert_eq!(records.len(), 2 * FLOWS, "{records:#?}");
    for end in &ends {
        let number = |key: &str| end[key].as_u64().expect("a number");
        let (client, port) =
            end["client"].as_str().and_then(|text| text.rsplit_once(':')).expect("an endpoint");
        let port: u16 = port.parse().expect("a port");
        let found = records
            .iter()
            .find(|record| record["src_port"] == port && record["in_packets"] == number("in_packets"));
        let record = found.unwrap_or_else(|| panic!("{end}\n{records:#?}"));
        let (server, server_port) =
            end["real_server"].as_str().and_then(|text| text.rsplit_once(':')).expect("an endpoint");
        assert_eq!(record["src4_addr"], client, "{record:#}");
        assert_eq!(record["dst_port"], DATAGRAMS, "{record:#}");
        assert_eq!(record["dst4_xlt_ip"], server, "{record:#}");
        assert_eq!(record["dst_xlt_port"], server_port, "{record:#}");
        assert_eq!(record["in_bytes"], number("in_bytes"), "{record:#}");
        assert_eq!(record["out_packets"], number("out_packets"), "{record:#}");
        assert_eq!(record["out_bytes"], number("out_bytes"), "{record:#}");
    }
}
