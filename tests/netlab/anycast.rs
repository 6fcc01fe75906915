//! Anycast: the example of docs/fleet.md as it stands, with BIRD on a router and on two directors.
//!
//! Connections by direct routing, tunnel and FULLNAT go on while one director leaves in order and comes back, and the
//! other one dies. Each test has a cluster of its own. Needs root. The connections that a dead director costs are
//! counted and printed. Not here: four directors, and new connections meanwhile (`scripts/soak anycast`).

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use xvs::clients::connect;
use xvs::cluster::{VIP, real_server, succeed, virtual_endpoint};
use xvs::director::program;
use xvs::fleet::{FLEET, Fleet, Member, example};
use xvs::sample::assert_sample;
use xvs::{Cluster, Director, Host, Layout, Method, MetricsAccess, Workers, wait};

/// The services: direct routing, tunnel, FULLNAT.
const PORTS: [u16; 3] = [80, 8080, 8081];
/// Connections to each.
const EACH: usize = 40;
/// BFD notices after a second: programs of a loaded machine may wait longer than the example's 0.3 s.
const BFD_MULTIPLIER: u8 = 10;
/// BIRD's route to the VIP.
const VIP_ROUTE: &str = "198.51.100.100/32";

/// An HTTP connection that stays open; `None`: it was lost.
type Lasting = Option<TcpStream>;

/// Sends a request and reads the whole answer, which is the server's name.
fn ask(stream: &mut TcpStream) -> Option<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: xvs.example\r\n\r\n").ok()?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while !(answer.ends_with(b"\r\n\r\nrs1\n") || answer.ends_with(b"\r\n\r\nrs2\n")) {
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    answer.starts_with(b"HTTP/1.1 200").then_some(())
}

/// Sends a request by each connection, and forgets those that do not answer. Returns how many were forgotten.
fn ask_all(connections: &mut [Lasting]) -> usize {
    let mut lost = 0;
    for connection in connections {
        if connection.as_mut().is_some_and(|stream| ask(stream).is_none()) {
            *connection = None;
            lost += 1;
        }
    }
    lost
}

/// The connections that a director knows, also those that it learns from others.
fn known(member: &Member<'_>) -> usize {
    member.director.adm("-L -n -c").matches("ESTABLISHED").count()
}

/// Opens a connection to the service with this port.
fn open(cluster: &Cluster, port: u16) -> Lasting {
    Some(cluster.run(Host::Client, || connect(virtual_endpoint(port))).expect("a connection"))
}

#[test]
fn connections_go_on_when_a_director_leaves_in_order_comes_back_or_dies() {
    let cluster = Cluster::up(Layout::default());
    // The real servers have the VIP and suppress ARP for it, so direct routing needs no more.
    Method::Tunnel.prepare(&cluster);
    let fleet = Fleet::start(&cluster, 2, BFD_MULTIPLIER);
    let rules = example("rules");
    let (mut first, second) = (fleet.member(1, &rules), fleet.member(2, &rules));
    fleet.await_next_hops(&[1, 2]);
    compared(&cluster, &["192.0.2.1:9112", "192.0.2.2:9112"], 0);
    second.director.adm(&format!("-E -t {VIP}:80 -s mh"));
    let differences = compared(&cluster, &["192.0.2.1", "192.0.2.2"], 2);
    assert_sample("fleet.md", "xvs doctor --fleet", &differences);
    second.director.adm(&format!("-E -t {VIP}:80 -s mh -b mh-fallback,mh-port"));

    let mut connections: Vec<Lasting> =
        (0..EACH).flat_map(|_| PORTS).map(|port| open(&cluster, port)).collect();
    let all = connections.len();
    assert_eq!(ask_all(&mut connections), 0);
    for member in [&first, &second] {
        wait::until("all connections are known", || (known(member) == all).then_some(()));
    }
    wait::until("the router has chosen both directors", || {
        let scheduled = [&first, &second].map(|member| scheduled(member));
        // One whose flow moved before it was synchronized counts at both.
        (scheduled.iter().sum::<usize>() >= all && !scheduled.contains(&0)).then_some(())
    });

    // It leaves in order.
    first.begin_drain();
    while !first.is_drained() {
        assert_eq!(ask_all(&mut connections), 0);
    }
    fleet.await_next_hops(&[2]);
    assert!(first.director.stop().success());
    drop(first);
    assert_eq!(ask_all(&mut connections), 0);

    // It comes back, and is announced with all connections.
    let first = fleet.member(1, &rules);
    fleet.await_next_hops(&[1, 2]);
    assert_eq!(known(&first), all);
    assert_eq!(ask_all(&mut connections), 0);

    // The other dies.
    second.die();
    let lost = ask_all(&mut connections);
    println!("{lost} of {all} connections were lost with a director");
    assert!(lost * 100 < all, "{lost} of {all} lost");
    fleet.await_next_hops(&[1]);
    compared(&cluster, &["192.0.2.1:9112", "192.0.2.1:9113"], 2);
    assert_eq!(ask_all(&mut connections), 0);
}

#[test]
fn a_director_is_announced_while_xvsd_serves_also_when_bird_is_restarted() {
    let cluster = Cluster::up(Layout::default());
    Method::Tunnel.prepare(&cluster);
    let fleet = Fleet::start(&cluster, 2, BFD_MULTIPLIER);
    // Without a backup daemon, no other director is awaited.
    let rules: String =
        example("rules").split_inclusive('\n').filter(|line| !line.contains("daemon")).collect();
    let mut director = fleet.member(1, &rules);
    fleet.await_next_hops(&[1]);
    // Each real server would have about half of the slots.
    let server = format!("{}:80", real_server(1));
    director.director.adm(&format!("-e -t {} -r {server} -g -w 0", virtual_endpoint(80)));
    let mut connections: Vec<Lasting> = (0..EACH).map(|_| open(&cluster, 80)).collect();
    assert_eq!(ask_all(&mut connections), 0);

    let is_announced =
        |director: &Member<'_>| director.birdc("show route export upstream").contains(VIP_ROUTE);
    assert!(director.birdc("configure").contains("Reconfigured"));
    assert!(is_announced(&director));
    director.end_bird();
    fleet.await_next_hops(&[]);
    director.start_bird();
    fleet.await_next_hops(&[1]);

    director.director.signal(Signal::STOP);
    fleet.await_next_hops(&[]);
    director.director.signal(Signal::CONT);
    fleet.await_next_hops(&[1]);

    director.director.kill();
    fleet.await_next_hops(&[]);
    director.end_bird();
    director.start_bird();
    wait::until("BIRD's session is up", || {
        director.birdc("show protocols upstream").contains("Established").then_some(())
    });
    assert!(!is_announced(&director));
}

#[test]
fn a_director_without_a_service_or_with_an_interface_that_is_down_is_not_announced() {
    let cluster = Cluster::up(Layout::default());
    let fleet = Fleet::start(&cluster, 2, BFD_MULTIPLIER);
    let rules = "-A -t 198.51.100.100:80 -s mh\n";
    let director = fleet.member(1, rules);
    fleet.await_next_hops(&[1]);
    director.director.adm("-C");
    fleet.await_next_hops(&[]);
    assert!(director.director.adm_reading("-R", rules).status.success());
    fleet.await_next_hops(&[1]);
    // The router notices this one too, so the director's own side is looked at.
    cluster.ip(FLEET[0], "link set lan down");
    wait::until("the director withdraws its addresses", || {
        (!cluster.ip(FLEET[0], "link show fleet").contains("UP")).then_some(())
    });
    cluster.ip(FLEET[0], "link set lan up");
    fleet.await_next_hops(&[1]);
}

/// The connections that a director's own services have scheduled.
fn scheduled(member: &Member<'_>) -> usize {
    let listing = member.director.adm("-L -n --stats --exact");
    let rows = listing.lines().filter(|line| line.starts_with("TCP"));
    rows.map(|row| row.split_whitespace().nth(2).expect("a column").parse::<usize>().expect("a count")).sum()
}

/// Runs `xvs doctor --fleet` on the first director, until it ends with this code; returns what it prints.
fn compared(cluster: &Cluster, directors: &[&str], code: i32) -> String {
    let mut doctor = cluster.command(FLEET[0], program("xvs"));
    doctor.args(["doctor", "--fleet"]).args(directors);
    wait::until(&format!("`xvs doctor --fleet` ends with {code}"), || {
        let output = doctor.output().expect("scripts/netlab can be started");
        (output.status.code() == Some(code)).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

#[test]
fn directors_are_asked_by_tls_with_a_token_for_all_their_services_and_refusals_say_what_is_missing() {
    let cluster = Cluster::up(Layout::default());
    let access = MetricsAccess::make(&cluster, 1, "open-sesame");
    // rustls takes no authority's certificate for a server's.
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-subj", "/CN=director", "-addext", "subjectAltName=IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]).arg("-key").arg(&access.private_key);
    succeed(openssl.arg("-out").arg(&access.certificate));
    let config = cluster.state().join("xvs.toml");
    let text = format!("metrics_address = \"127.0.0.1:9112\"\nstatus_page = true\n{}", access.toml());
    fs::write(&config, text).expect("the cluster's folder takes a new file");
    let director = Director::start_with(&cluster, Workers::One, &["--config", &config.display().to_string()]);
    let services: String =
        (1..=400).map(|port| format!("-A -t {} -s mh\n", virtual_endpoint(port))).collect();
    assert!(director.adm_reading("-R", &services).status.success());

    let (token, ca) = (access.token.display().to_string(), access.certificate.display().to_string());
    let asked = |url: &str, more: &[&str]| {
        let mut doctor = cluster.command(Host::Director, program("xvs"));
        doctor.args(["doctor", "--json", "--fleet", url, url]).args(more);
        let output = doctor.output().expect("scripts/netlab can be started");
        let document: Value = serde_json::from_slice(&output.stdout).expect("a document");
        (output.status.code(), document["findings"][0]["found"].as_str().expect("a text").to_owned())
    };
    let (url, with_ca) = ("https://127.0.0.1:9112", ["--ca-file", &ca]);
    // It is no fleet: no daemons run.
    let (code, found) = asked(url, &["--ca-file", &ca, "--token-file", &token]);
    assert!(code == Some(1) && found.ends_with("with 400 services"), "{found}");
    for (url, more, hint) in [
        (url, &with_ca[..], "see --token-file"),
        (url, &[], "see --ca-file"),
        ("127.0.0.1", &with_ca[..], "use https://"),
        ("127.0.0.1:9113", &[], "is xvsd running there"),
    ] {
        let (code, found) = asked(url, more);
        assert!(code == Some(2) && found.contains(hint), "{url} {more:?}: {found}");
    }
}
