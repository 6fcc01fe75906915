//! What an xvsd with `user` does through its helper, because it lacks the rights, and what goes on without the helper.
//!
//! Each test has a cluster of its own. Needs root. Not here: the rights of its processes (`rights.rs`).

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use xvs::clients::{self, HalfUpload};
use xvs::cluster::{REAL_SERVERS, VIP, complete, real_server, succeed, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

/// The port of uploads.
const UPLOAD: u16 = 9000;
/// That of a server that speaks first.
const SPEAKS: u16 = 9001;

/// The path of an xvs.toml with a hold and the user.
fn toml(cluster: &Cluster) -> String {
    let path = cluster.state().join("xvs.toml");
    // Every Debian has this user.
    fs::write(&path, "hold = \"10s\"\nuser = \"daemon\"\n").expect("the cluster's folder takes files");
    path.display().to_string()
}

/// A director with a service of pages, whose real server is the first one.
fn start<'a>(cluster: &'a Cluster, arguments: &[&str]) -> Director<'a> {
    let director = Director::start_with(cluster, Workers::One, arguments);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    director.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", real_server(1)));
    serves(cluster);
    director
}

/// The page for a client on a host; empty: there is none.
fn page(cluster: &Cluster, client: Host) -> String {
    let mut curl = cluster.command(client, "curl");
    let output = complete(curl.args(["-sS", "--max-time", "2", &format!("http://{VIP}/")]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until clients elsewhere and on the director itself are served.
fn serves(cluster: &Cluster) {
    for client in [Host::Client, Host::Director] {
        wait::until("the page", || (page(cluster, client) == "rs1\n").then_some(()));
    }
}

/// The one child of a process: of xvsd the keeper, of that the helper.
fn child(parent: u32) -> Pid {
    let child = succeed(Command::new("pgrep").args(["-P", &parent.to_string()]));
    Pid::from_raw(child.trim().parse().expect("one child")).expect("it is no 0")
}

#[test]
fn as_a_user_all_that_needs_more_rights_is_done_by_the_helper_also_for_a_successor() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let path = toml(&cluster);
    let arguments = ["--config", &*path];
    let mut director = start(&cluster, &arguments);
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    let managed = |host: u8| {
        let neighbours = cluster.ip(Host::Director, "neigh");
        let start = format!("{} ", real_server(host));
        neighbours.lines().any(|line| line.starts_with(&start) && line.contains("managed"))
    };
    assert!(managed(1) && managed(2));
    // A server that speaks first, and a client on the director.
    let server = SocketAddrV4::new(real_server(1), SPEAKS);
    let listener = cluster.run(Host::RealServer(1), || TcpListener::bind(server)).expect("a free port");
    director.adm(&format!("-A -t {VIP}:{SPEAKS} -s rr"));
    director.adm(&format!("-a -t {VIP}:{SPEAKS} -r {server} -m"));

    director.xvs("deny 198.51.100.10/32");
    assert_eq!(page(&cluster, Host::Client), "");
    let json = |words: &str| -> serde_json::Value {
        serde_json::from_str(&director.xvs(&format!("{words} --json"))).expect("JSON")
    };
    let [by_list, by_workers] =
        [&json("deny list")[0]["dropped"], &json("counters")["drop_denied"]].map(|count| count.as_u64());
    assert!(by_list > Some(0) && by_workers.unwrap_or(0) == 0, "the program: {by_list:?} {by_workers:?}");
    director.xvs("deny delete 198.51.100.10/32");

    traffic::wan_comes_back(&cluster, 1, 1);
    serves(&cluster);
    let here = cluster.run(Host::Director, || clients::connect(virtual_endpoint(SPEAKS)));
    let (mut here, mut server) = (here.expect("a connection"), listener.accept().expect("the same").0);
    let there = HalfUpload::begin(&cluster, UPLOAD);
    let next = Director::take_over(&cluster, Workers::One, &arguments).unwrap_or_else(|log| panic!("{log}"));
    director.is_taken_over();
    there.finish();
    // It is steered by what the program of the former xvsd knows.
    server.write_all(b"news").expect("the connection lasts");
    let mut news = [0; 4];
    here.read_exact(&mut news).expect("the connection lasts");
    assert_eq!(&news, b"news");
    serves(&cluster);
    assert!(!next.status().lines().any(|line| line.starts_with("warning")), "{}", next.status());
    next.xvs("stop --release");
    let links = cluster.ip(Host::Director, "link");
    assert!(!links.contains(": xvs") && !links.contains("xdp"), "{links}");
    assert!(!managed(1) && !managed(2));
}

#[test]
fn as_a_user_without_a_helper_packets_go_on_and_an_interface_that_returns_is_reported_with_the_step() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = start(&cluster, &["--config", &toml(&cluster)]);
    kill_process(child(director.process()), Signal::KILL).expect("it runs");
    let told = "there is no helper process any more";
    wait::until("xvs status tells it", || director.status().contains(told).then_some(()));
    serves(&cluster);
    // The program cannot have the list.
    director.xvs("deny 198.51.100.10/32");
    assert_eq!(page(&cluster, Host::Client), "");
    assert!(director.xvs("counters").lines().any(|line| line.starts_with("drop_denied ")));
    traffic::wan_comes_back(&cluster, 1, 1);
    wait::until("xvs status says why", || {
        let status = director.status();
        status.lines().any(|line| line.contains("wan") && line.contains(told)).then_some(())
    });
}

#[test]
fn as_a_user_a_helper_that_hangs_fails_its_tasks_and_they_are_done_when_it_goes_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = start(&cluster, &["--config", &toml(&cluster)]);
    let helper = child(child(director.process()).as_raw_nonzero().get().cast_unsigned());
    kill_process(helper, Signal::STOP).expect("it runs");
    traffic::wan_comes_back(&cluster, 1, 1);
    wait::until("xvs status says why", || {
        let status = director.status();
        let told = "the helper process does not answer";
        status.lines().any(|line| line.contains("wan") && line.contains(told)).then_some(())
    });
    succeed(cluster.command(Host::Director, program("xvs")).arg("healthy"));
    kill_process(helper, Signal::CONT).expect("it runs");
    serves(&cluster);
}
