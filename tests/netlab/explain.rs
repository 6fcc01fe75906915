//! `xvs explain` with a running daemon: before, during and after a real connection.
//!
//! Each test has a cluster of its own. Needs root. Not here: every kind of packet (`lab/explain.rs`).

use std::io::{Read, Write};
use std::net::SocketAddr;

use serde_json::{Value, json};
use xvs::cluster::{VIP, real_server, virtual_endpoint};
use xvs::director::Protocol;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// The report about a packet.
fn explain(director: &Director, words: &str) -> Value {
    serde_json::from_str(&director.xvs(&format!("explain --json {words}"))).expect("JSON")
}

/// The report about a client's packet to the service.
fn from_client(director: &Director, client: SocketAddr, flags: &str) -> Value {
    explain(director, &format!("--proto tcp --from {client} --to {VIP}:80 --flags {flags}"))
}

/// The state that a request could have changed, without times: counters, counts, connections.
fn books(director: &Director) -> [String; 3] {
    let connections = director.adm("-Lnc");
    let timeless = |row: &str| {
        let words = row.split_whitespace().enumerate().filter(|(place, _)| *place != 1);
        words.map(|(_, word)| word).collect::<Vec<_>>().join(" ")
    };
    let connections = connections.lines().map(timeless).collect::<Vec<_>>().join("\n");
    [director.xvs("counters --json"), director.adm("-Ln"), connections]
}

/// The state once two consecutive readings are equal.
fn quiet_books(director: &Director) -> [String; 3] {
    let mut last = books(director);
    wait::until("the counters rest", || {
        let now = books(director);
        let rests = now == last;
        last.clone_from(&now);
        rests.then_some(now)
    })
}

/// An endpoint of the client that no connection has.
fn client_endpoint(cluster: &Cluster) -> SocketAddr {
    let bound = cluster.run(Host::Client, || {
        let listener = std::net::UdpSocket::bind("0.0.0.0:0")?;
        listener.connect(virtual_endpoint(80))?;
        listener.local_addr()
    });
    bound.expect("a free port")
}

#[test]
fn explain_predicts_a_connection_and_changes_nothing() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let director = Director::start(&cluster, Workers::Two);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    clients::pages(&cluster, &format!("http://{VIP}/"), 1);
    let before = quiet_books(&director);
    let client = client_endpoint(&cluster);
    let report = from_client(&director, client, "syn");
    assert_eq!(json!([report["verdict"], report["interface"]]), json!(["transmit", "wan"]), "{report:#}");
    assert_eq!(report["way"]["interface"], "lan");
    let chosen = report["connection"]["dest"].as_str().expect("an endpoint").to_owned();
    for _ in 0..10 {
        assert_eq!(from_client(&director, client, "syn"), report, "the turn of rr does not move");
    }
    let unserved = explain(&director, &format!("--proto udp --from {client} --to {VIP}:80"));
    assert_eq!(unserved["verdict"], "pass");
    assert_eq!(quiet_books(&director), before);

    let mut download = cluster.run(Host::Client, || clients::connect(virtual_endpoint(80))).expect("tcp");
    let client = download.local_addr().expect("an address");
    let server = (1..=2).find(|number| chosen == format!("{}:80", real_server(*number))).expect("a server");
    let established = wait::until("the connection is established", || {
        let report = from_client(&director, client, "ack");
        (report["met"]["state"] == "ESTABLISHED").then_some(report)
    });
    assert_eq!(json!([established["direction"], established["met"]["dest"]]), json!(["inbound", chosen]));
    assert!(director.adm("-Lnc").contains(&chosen));
    let reply = format!("--proto tcp --from {}:80 --to {client} --flags ack", real_server(server));
    let reply = explain(&director, &reply);
    assert_eq!(
        json!([reply["direction"], reply["rewrite"]["from"]]),
        json!(["outbound", format!("{VIP}:80")])
    );
    assert_eq!(json!([reply["interface"], reply["way"]["interface"]]), json!(["lan", "wan"]));

    write!(download, "GET / HTTP/1.0\r\n\r\n").expect("a request");
    let mut page = String::new();
    download.read_to_string(&mut page).expect("a page");
    assert!(page.trim_end().ends_with(&format!("rs{server}")), "{page}");

    director.adm(&format!("-d -t {VIP}:80 -r {chosen}"));
    let orphan = from_client(&director, client, "ack");
    assert_eq!(orphan["reason"], "destination_unavailable", "{orphan:#}");
    director.adm(&format!("-D -t {VIP}:80"));
    let unknown = from_client(&director, client_endpoint(&cluster), "syn");
    assert_eq!(unknown["verdict"], "pass", "{unknown:#}");
}

#[test]
fn explain_during_downloads_disturbs_none_of_them() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let director = Director::start(&cluster, Workers::Two);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let blob = cluster.blob();
    std::thread::scope(|scope| {
        let downloads = scope.spawn(|| {
            (0..4).all(|_| clients::fetch(&cluster, &format!("http://{VIP}/blob")) == Ok(blob.clone()))
        });
        let client = client_endpoint(&cluster);
        let mut asked = 0;
        while !downloads.is_finished() || asked < 10 {
            assert_eq!(from_client(&director, client, "syn")["verdict"], "transmit");
            asked += 1;
        }
        assert!(downloads.join().expect("no panic"), "every download is whole");
    });
    let client = client_endpoint(&cluster);
    let text = director.xvs(&format!("explain --proto tcp --from {client} --to {VIP}:80"));
    assert!(text.starts_with("packet      TCP ") && text.contains("verdict     sent"), "{text}");
}
