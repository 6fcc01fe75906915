//! Access lists on the wire: packets that the XDP program drops, files of xvs.toml, reload and restart.
//!
//! Each test has a cluster of its own. Needs root. Not here: what a list refuses (`lab/lists.rs`), the program alone
//! (`crates/dataplane/tests/kernel/steering_lists.rs`).

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};

use xvs::cluster::{DIRECTOR, VIP, complete};
use xvs::director::{Protocol, program};
use xvs::servers::Echo;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic};

const CLIENT: &str = "198.51.100.10/32";
const HTTP: u16 = 80;
const OTHER: u16 = 5300;

/// curl's answer to a request, for which it waits half a second.
fn page(cluster: &Cluster) -> Result<(), String> {
    let url = format!("http://{VIP}:{HTTP}/");
    let output = complete(clients::curl(cluster).args(["--connect-timeout", "0.5", &url]));
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// The packets that the deny list of all services has dropped, and those that workers have.
fn dropped(director: &Director<'_>) -> (u64, u64) {
    let rows: serde_json::Value = serde_json::from_str(&director.xvs("deny list --json")).expect("JSON");
    let by_list = rows.as_array().expect("an array").iter().find(|row| row["service"].is_null());
    let counters: serde_json::Value = serde_json::from_str(&director.xvs("counters --json")).expect("JSON");
    let by_workers = counters["drop_denied"].as_u64().unwrap_or(0);
    (by_list.and_then(|row| row["dropped"].as_u64()).unwrap_or(0), by_workers)
}

#[test]
fn a_take_over_is_refused_while_the_file_of_a_list_has_a_fault_and_the_running_xvsd_goes_on_with_it() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut former = Director::start_with(&cluster, Workers::One, &["--hold", "1h"]);
    former.add_service(Protocol::Tcp, HTTP, Method::Nat);
    let file = cluster.state().join("deny");
    let write = |text: &str| fs::write(&file, text).expect("the cluster's folder takes files");
    write(CLIENT);
    former.xvs(&format!("deny file -t {VIP}:{HTTP} {}", file.display()));
    write("203.0.113.0/24\n203.0.113.1/24\n");
    let take_over = || Director::take_over(&cluster, Workers::One, &["--hold", "1h"]);
    let Err(log) = take_over() else { panic!("a successor goes on without the networks of a list") };
    let error = log.lines().last().expect("an error");
    for part in ["deny: line 2: ", "correct the file, then start or take over again"] {
        assert!(error.contains(part), "{log}");
    }
    assert!(page(&cluster).is_err(), "a client of the list has a page");
    write("203.0.113.0/24\n");
    let _director = take_over().unwrap_or_else(|log| panic!("{log}"));
    assert!(former.has_ended().success(), "{}", former.log());
    assert_eq!(page(&cluster), Ok(()));
}

#[test]
fn a_denied_client_gets_nothing_and_other_traffic_to_the_director_is_untouched() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let toml = cluster.state().join("xvs.toml");
    let file = cluster.state().join("deny");
    let write = |text: &str| fs::write(&file, text).expect("the cluster's folder takes files");
    write("# nobody\n203.0.113.0/24\n");
    let config =
        format!("interfaces = [\"wan\", \"lan\"]\nworkers = 1\ndeny_file = \"{}\"\n", file.display());
    fs::write(&toml, config).expect("the cluster's folder takes files");
    let start =
        || Director::start_on(&cluster, Host::Director, &["--config", toml.to_str().expect("a plain path")]);
    let mut director = start();
    director.add_service(Protocol::Tcp, HTTP, Method::Nat);
    let own = SocketAddrV4::new(DIRECTOR, OTHER);
    let _echo = Echo::start(&cluster, Host::Director, own);
    let other = |cluster: &Cluster| clients::Asker::new(cluster, SocketAddr::V4(own)).ask(b"who serves me?");
    assert_eq!((page(&cluster), other(&cluster).as_str()), (Ok(()), "dr"));

    director.xvs(&format!("deny {CLIENT} for 1h"));
    assert!(page(&cluster).is_err(), "a denied client has a page");
    assert_eq!(other(&cluster), "dr");
    let (by_list, by_workers) = dropped(&director);
    assert!(by_list > 0 && by_workers == 0, "not dropped in the XDP program: {by_list} {by_workers}");
    let status = director.xvs("status");
    assert!(status.contains("deny list of all services: 2 networks, "), "{status}");

    // The entry and the file are there after a kill, with the time that is left.
    director.kill();
    drop(director);
    let director = start();
    assert!(page(&cluster).is_err(), "a denied client has a page after a restart");
    let listing = director.xvs("deny list");
    assert!(listing.contains(&format!("{CLIENT}  for 59m ")), "{listing}");
    director.xvs(&format!("deny delete {CLIENT}"));
    assert_eq!(page(&cluster), Ok(()));

    // A file with a fault changes nothing and is named with its line; a good one is replaced as a whole.
    write(&format!("{CLIENT}\n203.0.113.1/24\n"));
    let output = complete(cluster.command(Host::Director, program("xvs")).arg("reload"));
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && why.contains("deny: line 2: "), "{why}");
    assert_eq!(page(&cluster), Ok(()));
    write(&format!("{CLIENT}\n203.0.113.1\n"));
    let read = director.xvs("reload");
    assert!(read.contains("deny list of all services: read again, 2 networks"), "{read}");
    assert!(page(&cluster).is_err(), "a client of the new file has a page");
    write("");
    director.xvs("reload");
    assert_eq!(page(&cluster), Ok(()));

    // A service with an allow list accepts nobody else.
    director.xvs(&format!("allow -t {VIP}:{HTTP} 203.0.113.0/24"));
    assert!(page(&cluster).is_err(), "a client that is not in the allow list has a page");
    assert_eq!(other(&cluster), "dr");
    director.xvs(&format!("allow -t {VIP}:{HTTP} {CLIENT}"));
    assert_eq!(page(&cluster), Ok(()));

    // An allow list whose file is gone at a start lets nobody in, until the file is back.
    let allowed = cluster.state().join("allow");
    let allow = || fs::write(&allowed, CLIENT).expect("the cluster's folder takes files");
    allow();
    director.xvs(&format!("allow file -t {VIP}:{HTTP} {}", allowed.display()));
    director.xvs(&format!("allow delete -t {VIP}:{HTTP} {CLIENT}"));
    director.xvs(&format!("allow delete -t {VIP}:{HTTP} 203.0.113.0/24"));
    assert_eq!(page(&cluster), Ok(()));
    let mut director = director;
    director.kill();
    drop(director);
    fs::remove_file(&allowed).expect("it is there");
    let director = start();
    assert!(page(&cluster).is_err(), "an allow list without its file lets a client in");
    let status = director.xvs("status");
    assert!(status.contains("it lets nobody in until `xvs reload` finds the file correct"), "{status}");
    allow();
    director.xvs("reload");
    assert_eq!(page(&cluster), Ok(()));
    assert!(!director.xvs("status").contains("lets nobody in"));
}
